"""Layers of the world model: slots and their movement, and the places of change."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

REACH = 2  # a map moves by at most this many positions in each direction
SHARPNESS = 10.0  # factor on the logits of `Points`, so that their maps are not flat at the beginning
EDGE = 5.0  # coordinate of the edges of a frame; it is large, so that a move by one pixel is not negligible


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
