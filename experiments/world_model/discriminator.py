"""What tells frames from reconstructions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtrl.losses import ModelOutputs


class PatchDiscriminator(nn.Module):
    """Judges each patch of a frame by itself (Isola et al. 2017, https://arxiv.org/abs/1611.07004).

    Args:
        channels: C.
        features: of the second layer; the first has half of them.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, features // 2, 4, 2, 1)
        self.second = nn.Conv2d(features // 2, features, 4, 2, 1)
        self.judge = nn.Conv2d(features, 1, 3, 1, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, T, 1, H/4, W/4) of frames (B, T, C, H, W), positive for real ones, and two layers' features."""
        first = torch.nn.functional.leaky_relu(self.first(frames.flatten(0, 1)), 0.2)
        second = torch.nn.functional.leaky_relu(self.second(first), 0.2)
        return self.judge(second).unflatten(0, frames.shape[:2]), [first, second]


def judged(outputs: ModelOutputs, discriminator: nn.Module, observations: Tensor) -> ModelOutputs:
    """`outputs` with what the adversarial task needs, none of which reaches the discriminator's own parameters."""
    with frozen(discriminator):
        fake_logits, fake_features = discriminator(outputs["reconstruction"])
        with torch.no_grad():
            _, real_features = discriminator(observations)
    return {**outputs, "fake_logits": fake_logits, "real_features": real_features, "fake_features": fake_features}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What is computed inside gives `module`'s parameters no gradient."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
