"""Layers of the world model: slots, their movement, and the tokenizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, scaled_dot_product_attention

REACH = 2  # a map moves by at most this many positions in each direction
HEADS = 4
SHARPNESS = 10.0  # factor on the logits of `Points`, so that their maps are not flat at the beginning
EDGE = 5.0  # coordinate of the edges of a frame; it is large, so that a move by one pixel is not negligible
USAGE_RATE = 0.1  # rate of the moving average of a code's usage
IDLE = 0.5  # a code with fewer tokens per batch than this is out of use


class SlotAttention(nn.Module):
    """Slots compete for positions and gather what they win (Locatello et al. 2020, https://arxiv.org/abs/2006.15055).

    Slots start from learned values instead of random ones, so that a slot keeps its role from frame to frame.

    Args:
        slots: the number of slots S.
        features: the number of features F of a position and of a slot.
        rounds: how often the slots are refined. Default 2.
    """

    def __init__(self, slots: int, features: int, rounds: int = 2) -> None:
        super().__init__()
        self.rounds = rounds
        self.start = nn.Parameter(torch.randn(slots, features))
        self.norm = nn.LayerNorm(features)
        self.slot_norm = nn.LayerNorm(features)
        self.query = nn.Linear(features, features, bias=False)
        self.key = nn.Linear(features, features, bias=False)
        self.value = nn.Linear(features, features, bias=False)
        self.update = nn.GRUCell(features, features)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Slots (N, S, F) and their maps (N, S, P), which sum to 1 over P, from features (N, P, F)."""
        features = self.norm(features)
        keys, values = self.key(features), self.value(features)
        slots = self.start.expand(len(features), -1, -1)
        for _ in range(self.rounds):
            scores = self.query(self.slot_norm(slots)) @ keys.mT / keys.shape[-1] ** 0.5  # (N, S, P)
            shares = scores.softmax(1) + 1e-6
            maps = shares / shares.sum(-1, keepdim=True)
            gathered = maps @ values
            slots = self.update(gathered.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return slots, maps


class Points(nn.Module):
    """Places of change: the centres of learned maps of a difference of frames (Finn et al. 2016, arXiv 1509.06113).

    A centre is exact to a fraction of a pixel. Coarse patches are not exact enough to locate a moving lander.

    Args:
        channels: the number of channels C of a frame.
        points: the number of maps.
    """

    def __init__(self, channels: int, points: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(2 * channels, points, 3, 1, 1)

    def forward(self, frames: Tensor, before: Tensor) -> Tensor:
        """Coordinates (N, 2 points), from -5 to 5, of the change between two frames (N, C, H, W)."""
        change = frames - before
        logits = SHARPNESS * self.maps(torch.cat([change.relu(), (-change).relu()], 1))
        shares = torch.unflatten(logits.flatten(2).softmax(-1), -1, frames.shape[-2:])  # (N, points, H, W)
        down, across = (torch.linspace(-EDGE, EDGE, size, device=frames.device) for size in frames.shape[-2:])
        return torch.cat([shares.sum(-1) @ down[:, None], shares.sum(-2) @ across[:, None]], -1).flatten(1)


class MapDynamics(nn.Module):
    """Moves each slot's map by a distribution over displacements, which is computed from the state.

    Args:
        state: the size of the state.
        slots: the number of slots S.
    """

    def __init__(self, state: int, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.displacement = nn.Linear(state, slots * (2 * REACH + 1) ** 2)

    def forward(self, state: Tensor, maps: Tensor) -> Tensor:
        """The next maps (N, S, h, w), which sum to 1 each, from states (N, H) and maps (N, S, h, w)."""
        weights = self.displacement(state).view(len(state), self.slots, -1).softmax(-1)  # (N, S, 25)
        # Attention that would leave the picture stays at its edge.
        patches = pad(maps, (REACH,) * 4, mode="replicate").unfold(2, 2 * REACH + 1, 1).unfold(3, 2 * REACH + 1, 1)
        moved: Tensor = (patches.flatten(-2) * weights[:, :, None, None]).sum(-1)
        return moved / moved.sum((-2, -1), keepdim=True)


class Attention(nn.Module):
    """Queries gather from a set by cross-attention with four heads; a small perceptron transforms the result.

    Args:
        features: the number of features of a query and of an element of the set, a multiple of 4.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.query = nn.Linear(features, features)
        self.key_value = nn.Linear(features, 2 * features)
        self.out = nn.Linear(features, features)
        self.think = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features)
        )

    def forward(self, queries: Tensor, things: Tensor) -> Tensor:
        """The results (N, Q, F) of queries (Q, F) on sets `things` (N, P, F)."""
        N, _, F = things.shape

        def heads(tensor: Tensor) -> Tensor:
            return torch.unflatten(tensor, -1, (HEADS, -1)).transpose(-3, -2)  # (..., heads, P, F/heads)

        keys, values = self.key_value(self.norm(things)).chunk(2, -1)
        asked = heads(self.query(queries)).expand(N, -1, -1, -1)
        gathered = scaled_dot_product_attention(asked, heads(keys), heads(values)).transpose(1, 2).reshape(N, -1, F)
        found: Tensor = queries + self.out(gathered)
        thought: Tensor = self.think(found)
        return found + thought


class Tokenizer(nn.Module):
    """Turns the patches of a frame into discrete tokens, and rebuilds the frame from them.

    Learned latents gather the patches (Jaegle et al. 2021), and each result is replaced by the nearest code.

    Tokens and codes have unit length, as in Yu et al. (2022), https://arxiv.org/abs/2110.04627.

    Args:
        features: the number of features F of a patch.
        grid: the numbers of patches down and across.
        tokens: the number of tokens M per frame.
        codes: the size of the codebook.
        size: the size E of a code.
        channels: the number of channels C of a frame.
    """

    usage: Tensor

    def __init__(self, features: int, grid: tuple[int, int], tokens: int, codes: int, size: int, channels: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(tokens, features))
        self.gather = Attention(features)
        self.encode = nn.Linear(features, size)
        self.codebook = nn.Parameter(torch.randn(codes, size))
        self.register_buffer("usage", torch.ones(codes))  # tokens per batch of each code, a moving average
        self.decode = nn.Sequential(
            nn.Flatten(),
            nn.Linear(tokens * size, features * grid[0] * grid[1]),
            nn.ReLU(),
            nn.Unflatten(1, (features, *grid)),
            nn.ConvTranspose2d(features, features // 2, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(features // 2, channels, 4, 2, 1),
        )

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (N, M, E), codes (N, M, E), indices (N, M) and rebuilt frames (N, C, H, W) from patches (N, P, F)."""
        encoding = normalize(self.encode(self.gather(self.latents, patches)), dim=-1)
        codebook = normalize(self.codebook, dim=-1)
        index = (encoding @ codebook.mT).argmax(-1)
        code = codebook[index]
        straight_through = encoding + (code - encoding).detach()
        return encoding, code, index, self.decode(straight_through)

    @torch.no_grad()
    def revive(self, encoding: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Replace codes that are no longer used by tokens of the batch (Dhariwal et al. 2020, arXiv 2005.00341).

        Args:
            encoding: the tokens of the batch, (..., E).
            index: the index of each token's code, (...).
            generator: the source of the random choice of tokens.
        """
        counts = index.flatten().bincount(minlength=len(self.usage))
        self.usage.lerp_(counts.to(self.usage), USAGE_RATE)
        idle = (self.usage < IDLE).nonzero().flatten()
        tokens = encoding.flatten(0, -2)
        self.codebook[idle] = tokens[torch.randint(len(tokens), (len(idle),), generator=generator)]
        self.usage[idle] = 1.0
