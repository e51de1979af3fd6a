"""Spatial tokens: a frame as one discrete token per patch, and the prediction of the next frame's tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pixel_shuffle, pixel_unshuffle

PATCH = 4  # height and width of a patch, in pixels
USAGE_RATE = 0.1  # rate of the moving average of a code's usage
IDLE = 0.1  # a code with fewer tokens per batch than this is out of use
FIRST_STAY = 4.0  # logit of the token that is there, before training, above those of all others


class Tokens(NamedTuple):
    """The tokens of N frames of P patches."""

    encoding: Tensor  # (N, P, E), the patches before quantisation, of unit length
    code: Tensor  # (N, P, E), the nearest codes
    chosen: Tensor  # (N, P), the numbers of these codes


class Tokenizer(nn.Module):
    """Turns each patch of a frame into a discrete token, and rebuilds the frame from its tokens alone.

    A token tells what its patch looks like; where it is follows from the token's place (van den Oord et al. 2017,
    https://arxiv.org/abs/1711.00937). Beside the features of a patch, the encoder sees its pixels: features are large
    where the ground is, and a craft of a few pixels would long go unnoticed. Tokens and codes have unit length, as in
    Yu et al. (2022), https://arxiv.org/abs/2110.04627.

    Args:
        features: the number of features F of a patch.
        grid: the numbers of patches down and across, h and w.
        codes: the size of the codebook.
        size: the size E of a code.
        channels: the number of channels C of a frame.
    """

    usage: Tensor

    def __init__(self, features: int, grid: tuple[int, int], codes: int, size: int, channels: int) -> None:
        super().__init__()
        pixels = channels * PATCH**2
        self.encode = nn.Linear(features + pixels, size)
        self.codebook = nn.Parameter(torch.randn(codes, size))
        self.register_buffer("usage", torch.ones(codes))  # tokens per batch of each code, a moving average
        self.as_grid = nn.Unflatten(2, grid)
        self.alone = nn.Conv2d(size, pixels, 1)
        self.around = nn.Sequential(
            nn.Conv2d(size, 2 * features, 3, 1, 1), nn.ReLU(), nn.Conv2d(2 * features, pixels, 1)
        )

    @property
    def codes(self) -> Tensor:
        """The codes, (codes, E), of unit length."""
        return normalize(self.codebook, dim=-1)

    def forward(self, patches: Tensor, frames: Tensor) -> tuple[Tokens, Tensor]:
        """The tokens of frames (N, C, H, W) with patches (N, P, F), and the rebuilt frames (N, C, H, W)."""
        pixels = pixel_unshuffle(frames, PATCH).flatten(2).mT  # (N, P, C PATCH^2)
        encoding = normalize(self.encode(torch.cat([patches, pixels], -1)), dim=-1)
        index = (encoding @ self.codes.mT).argmax(-1)
        code = self.codes[index]
        straight_through = encoding + (code - encoding).detach()
        return Tokens(encoding, code, index), self.decode(straight_through)

    def decode(self, codes: Tensor) -> Tensor:
        """The frames (N, C, H, W) of codes (N, P, E). Each patch is drawn from its own code and those around it."""
        grid = self.as_grid(codes.mT)
        return pixel_shuffle(self.alone(grid) + self.around(grid), PATCH)

    @torch.no_grad()
    def revive(self, encoding: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Replace codes that are no longer used by tokens of the batch (Dhariwal et al. 2020, arXiv 2005.00341).

        A token is drawn with a probability in proportion to its squared distance from its code. Most patches are empty
        sky, which needs no second code.

        Args:
            encoding: the tokens of the batch, (..., E).
            index: the index of each token's code, (...).
            generator: the source of the random choice of tokens.
        """
        counts = index.flatten().bincount(minlength=len(self.usage))
        self.usage.lerp_(counts.to(self.usage), USAGE_RATE)
        idle = self.usage < IDLE
        tokens = encoding.flatten(0, -2)
        distances = (tokens - self.codes[index.flatten()]).square().sum(-1)
        chosen = torch.multinomial(distances + 1e-6, len(idle), replacement=True, generator=generator)  # (codes,)
        self.codebook[idle] = tokens[chosen[idle]]
        self.usage[idle] = 1.0


class NextTokens(nn.Module):
    """Predicts each token of the next frame from the tokens around it and the model's state.

    Before training, the likeliest token is the one that is there.

    Args:
        state: the size of the state, which tells what moves and which action is taken.
        size: the size E of a code.
        codes: the size of the codebook.
        features: the number of features between the layers.
        grid: the numbers of patches down and across, h and w.
    """

    def __init__(self, state: int, size: int, codes: int, features: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.around = nn.Sequential(nn.Unflatten(2, grid), nn.Conv2d(size, features, 3, 1, 1))
        self.state = nn.Linear(state, features)
        self.think = nn.Sequential(nn.ReLU(), nn.Conv2d(features, features, 3, 1, 1), nn.ReLU(), nn.Flatten(2))
        self.change = nn.Linear(features, codes)
        self.stay = nn.Linear(features, 1)
        for layer, bias in ((self.change, 0.0), (self.stay, FIRST_STAY)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)

    def forward(self, tokens: Tokens, state: Tensor) -> Tensor:
        """The logits (N, P, codes) of the next tokens.

        Args:
            tokens: the tokens of the present frames. No gradient reaches them.
            state: the states after the present frames and their actions, (N, ...).
        """
        around = self.around(tokens.code.detach().mT) + self.state(state)[:, :, None, None]
        thought = self.think(around).mT  # (N, P, features)
        logits: Tensor = self.change(thought)
        return logits.scatter_add(-1, tokens.chosen.unsqueeze(-1), self.stay(thought))
