"""The network that tells real frames from reconstructions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from mtrl.losses import AdversarialLoss, ModelOutputs


class PatchDiscriminator(nn.Module):
    """Judges each patch of a frame by itself (Isola et al. 2017, https://arxiv.org/abs/1611.07004).

    Args:
        channels: the number C of a frame's channels.
        features: the numbers of features F1 and F2 of the two hidden layers.
        kernel: the width of the last convolution, an odd number. Default 3.
    """

    def __init__(self, channels: int, features: tuple[int, int], kernel: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, features[0], 4, 2, 1)
        self.second = nn.Conv2d(features[0], features[1], 4, 2, 1)
        self.judge = nn.Conv2d(features[1], 1, kernel, 1, kernel // 2)

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judge frames.

        Args:
            frames: frames (B, T, C, H, W).

        Returns:
            Logits (B, T, 1, H/4, W/4), which are positive for frames that look real, and the features of the two hidden
            layers, (B T, F1, H/2, W/2) and (B T, F2, H/4, W/4).
        """
        first = leaky_relu(self.first(frames.flatten(0, 1)), 0.2)
        second = leaky_relu(self.second(first), 0.2)
        return self.judge(second).unflatten(0, frames.shape[:2]), [first, second]


def judged(outputs: ModelOutputs, discriminator: nn.Module, observations: Tensor) -> ModelOutputs:
    """Add to `outputs` what the adversarial task needs. Its loss gives the discriminator's parameters no gradient."""
    with frozen(discriminator):
        fake_logits, fake_features = discriminator(outputs["reconstruction"])
        with torch.no_grad():
            _, real_features = discriminator(observations)
    return {**outputs, "fake_logits": fake_logits, "real_features": real_features, "fake_features": fake_features}


def discriminator_loss(
    discriminator: nn.Module, objective: AdversarialLoss, observations: Tensor, reconstruction: Tensor
) -> Tensor:
    """The discriminator's own loss (), which gives the model that made `reconstruction` no gradient."""
    real, _ = discriminator(observations)
    fake, _ = discriminator(reconstruction.detach())
    return objective.discriminator(real, fake)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Computations in this context give `module`'s parameters no gradient."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
