"""The trunk, which turns frames into features, and the decoder, which turns features and latents into frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

# These factors set how fast the parts of the decoder learn relative to each other. If the touch-up learned as fast as
# the motion, it would blur moving objects, and the decoder would not need the latent.
STRIDE = 4.0  # pixels of displacement for one unit of the layer's output
SHARPNESS = 5.0  # factor on the logits that choose which pixels move
TOUCH_UP = 0.1  # factor on the change of pixels after the motion


@dataclass(frozen=True)
class ModelSettings:
    """The sizes of the model."""

    height: int  # H, a multiple of 4
    width: int  # W, a multiple of 4
    channels: int  # C
    actions: int  # A
    features: int = 32  # F, features of a patch and of a slot, a multiple of 4
    slots: int = 4  # S
    latent: int = 32  # D
    components: int = 4  # K
    state: int = 128  # numbers in the recurrent memory
    points: int = 16  # maps of `Points`
    codes: int = 256  # codes in the codebook
    code_size: int = 16  # E

    @property
    def grid(self) -> tuple[int, int]:
        """The numbers of patches down and across, h and w."""
        return self.height // 4, self.width // 4


class Features(NamedTuple):
    """Frames and the trunk's features of them."""

    frames: Tensor  # (N, C, H, W)
    fine: Tensor  # (N, F/2, H/2, W/2)
    patches: Tensor  # (N, F, h, w)


class Trunk(nn.Module):
    """Convolutions that compute the features that all objectives share.

    Args:
        channels: the number of channels C of a frame.
        features: the number of features F of a patch.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(channels, features // 2, 4, 2, 1), nn.ReLU())
        self.coarse = nn.Sequential(
            nn.Conv2d(features // 2, features, 4, 2, 1), nn.ReLU(), nn.Conv2d(features, features, 3, 1, 1), nn.ReLU()
        )

    def forward(self, frames: Tensor) -> Features:
        """Features of frames (N, C, H, W)."""
        fine = self.fine(frames)
        return Features(frames, fine, self.coarse(fine))


class Decoder(nn.Module):
    """p(x_t | z_t, x_(t-1)): moves a part of the frame before, and changes pixels.

    The latent sets how far the part moves. Convolutions choose the pixels that move, and touch up the result. Before
    training, the output is close to a copy of the frame before.

    Args:
        settings: the sizes of the model.
    """

    corners: Tensor
    pixel: Tensor

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        F, C = settings.features, settings.channels
        self.grid = settings.grid
        self.register_buffer("corners", torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), persistent=False)
        self.register_buffer("pixel", torch.tensor([2 / settings.width, 2 / settings.height]), persistent=False)
        self.displacement = nn.Linear(settings.latent, 2)
        self.plan = nn.Linear(settings.latent, F * self.grid[0] * self.grid[1])
        self.coarse = nn.Sequential(nn.Conv2d(2 * F, F, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(F, F // 2, 4, 2, 1))
        self.fine = nn.Sequential(nn.Conv2d(F, F // 2, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(F // 2, F // 2, 4, 2, 1))
        self.change = nn.Sequential(nn.ReLU(), nn.Conv2d(F // 2 + C, C + 1, 3, 1, 1))
        # The mean displacement starts at 0, but each latent moves something: weights of 0 would be slow to learn.
        nn.init.zeros_(self.displacement.bias)
        for parameter in self.change[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, latent: Tensor, seen: Features) -> Tensor:
        """Frames (N, C, H, W), from latents (N, D) and the features `seen` of the frames before.

        Raises:
            FloatingPointError: a displacement is not finite.
        """
        before = seen.frames
        plan = torch.unflatten(self.plan(latent).relu(), -1, (-1, *self.grid))  # (N, F, h, w)
        coarse = self.coarse(torch.cat([plan, seen.patches], 1))
        fine = self.fine(torch.cat([coarse.relu(), seen.fine], 1))
        change = self.change(torch.cat([fine, before], 1))
        shares = (SHARPNESS * change[:, :1]).sigmoid().movedim(1, -1)  # (N, H, W, 1), how far each pixel moves
        moves = shares * (STRIDE * self.displacement(latent) * self.pixel)[:, None, None]
        if not bool(moves.isfinite().all()):  # on NaN, the backward pass of `grid_sample` ends the process
            raise FloatingPointError("a displacement of the decoder is not finite")
        here = affine_grid(self.corners.expand(len(before), -1, -1), list(before.shape), align_corners=False)
        moved = grid_sample(before, here - moves, padding_mode="zeros", align_corners=False)
        frames: Tensor = moved + TOUCH_UP * change[:, 1:]
        return frames
