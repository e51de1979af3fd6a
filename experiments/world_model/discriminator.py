"""The network that tells real pairs of frames from reconstructions and roll-outs, and when it is listened to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from mtrl.losses import ModelOutputs

ACCURACY_RATE = 0.05  # rate of the moving average of the discriminator's accuracy
HEARD, UNHEARD = 0.65, 0.55  # accuracies from which on it is listened to, and below which it is not any more


class Pairs(NamedTuple):
    """Frames to be judged, each with the frame before it, (B, N, C, H, W)."""

    frames: Tensor
    before: Tensor


class PairDiscriminator(nn.Module):
    """Judges whether a frame looks real, given the frame before it, so that it sees movement, too.

    Most of a frame is ground and empty sky, which no discriminator can tell apart. So a pair gets one judgement, from
    the largest and the mean value of each feature over the positions.

    Args:
        channels: the number C of a frame's channels.
        features: the numbers of features F1 and F2 of the two hidden layers. Default 16 and 32.
    """

    def __init__(self, channels: int, features: tuple[int, int] = (16, 32)) -> None:
        super().__init__()
        self.first = nn.Conv2d(2 * channels, features[0], 4, 2, 1)
        self.second = nn.Conv2d(features[0], features[1], 4, 2, 1)
        self.judge = nn.Linear(2 * features[1], 1)

    def forward(self, pairs: Pairs) -> tuple[Tensor, list[Tensor]]:
        """Judge pairs of frames.

        Returns:
            Logits (B, N), which are positive for pairs that look real, and the features of the two hidden layers,
            (B N, F1, H/2, W/2) and (B N, F2, H/4, W/4).
        """
        change = pairs.frames - pairs.before
        first = leaky_relu(self.first(torch.cat([pairs.frames, change], 2).flatten(0, 1)), 0.2)
        second = leaky_relu(self.second(first), 0.2)
        pooled = torch.cat([second.amax((-2, -1)), second.mean((-2, -1))], -1)
        return torch.unflatten(self.judge(pooled).squeeze(-1), 0, pairs.frames.shape[:2]), [first, second]


def real_and_fake(outputs: ModelOutputs, observations: Tensor) -> tuple[Pairs, Pairs]:
    """The real pairs of a batch, and the model's pairs that take their places.

    The model's are each reconstruction after the true frame before it, and each frame of the roll-out after the
    roll-out's own frame before it. The first frame of a sequence has none before it, and is left out.
    """
    frames, before = observations[:, 1:], observations[:, :-1]
    real, fake = Pairs(frames, before), Pairs(outputs["reconstruction"][:, 1:], before)
    if (unrolled := outputs.get("unrolled")) is None:
        return real, fake
    count = unrolled.shape[1]
    own_before = torch.cat([before[:, -count : len(before[0]) - count + 1], unrolled[:, :-1]], 1)
    real = Pairs(*(torch.cat([each, each[:, -count:]], 1) for each in real))
    return real, Pairs(torch.cat([fake.frames, unrolled], 1), torch.cat([fake.before, own_before], 1))


def judged(outputs: ModelOutputs, discriminator: nn.Module, observations: Tensor) -> ModelOutputs:
    """Add to `outputs` what the adversarial task needs. Its loss gives the discriminator's parameters no gradient.

    Where there is a roll-out, its frames are judged; reconstructions have the true frame before to start from, and
    look real by themselves.
    """
    real, fake = real_and_fake(outputs, observations)
    if (unrolled := outputs.get("unrolled")) is not None:
        count = unrolled.shape[1]
        real, fake = (Pairs(*(each[:, -count:] for each in pairs)) for pairs in (real, fake))
    with frozen(discriminator):
        fake_logits, fake_features = discriminator(fake)
        with torch.no_grad():
            _, real_features = discriminator(real)
    return {**outputs, "fake_logits": fake_logits, "real_features": real_features, "fake_features": fake_features}


def judgements(discriminator: nn.Module, outputs: ModelOutputs, observations: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (B, N) of the real pairs and of the model's, which give the model no gradient."""
    real, fake = real_and_fake(outputs, observations)
    return discriminator(real)[0], discriminator(Pairs(fake.frames.detach(), fake.before.detach()))[0]


def accuracy(real_logits: Tensor, fake_logits: Tensor) -> float:
    """The mean share of right judgements of real pairs and of the model's; 0.5 is chance."""
    return float((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2


@dataclass
class Hearing:
    """Decides whether the adversarial objective takes part in the balance.

    A discriminator that judges by chance has nothing to teach, yet a balancer that gives every objective an equal say
    would follow its noise. It is listened to after the warm-up, once the moving average of its accuracy has reached
    0.65, and not any more when that falls below 0.55.

    Attributes:
        warm_up: the number of updates before it may be listened to.
        accuracy: the moving average of its accuracy, 0.5 at first.
        heard: whether it is listened to.
    """

    warm_up: int
    accuracy: float = 0.5
    heard: bool = False

    def follow(self, accuracy: float, step: int) -> bool:
        """Take account of the accuracy at an update.

        Returns:
            Whether `heard` has changed.
        """
        self.accuracy += ACCURACY_RATE * (accuracy - self.accuracy)
        before = self.heard
        self.heard = step >= self.warm_up and self.accuracy >= (UNHEARD if before else HEARD)
        return self.heard != before


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Computations in this context give `module`'s parameters no gradient."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
