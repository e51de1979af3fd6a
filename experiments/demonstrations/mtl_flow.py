"""`python -m experiments.demonstrations.mtl_flow`: all steps from video frames to balanced updates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.demonstrations.config import VideoConfig
from experiments.program.command import run
from mtrl.limits import check_number


@dataclass(frozen=True)
class FlowConfig(VideoConfig):
    """Train a tiny world model on four objectives: outputs, losses, balanced gradients, optimizer step.

    The model learns a small video by heart. A discriminator with its own optimizer learns beside it.
    """

    balancer: str = "rgb"
    """equal, static, normalised, gradnorm, pcgrad, rgb, aim, gradnorm_pcgrad, memory, random or
    torchjd:<aggregator>."""

    balancer_options: tuple[str, ...] = ()
    """Arguments of the balancer as name=value, for example `alpha=0.5` for gradnorm."""

    steps: int = 100
    """Updates of the model and of the discriminator."""

    learning_rate: float = 4e-3
    """Step size of Adam. The tokenizer's step size is 1.5 times as large, the discriminator's 1/20 as large."""

    sequences: int = 8
    """Sequences of the video, from 1 to 64."""

    frames: int = 6
    """Frames in each sequence, from 2 to 64."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_number("steps", self.steps, least=10, most=1_000_000, whole=True)
        check_number("learning_rate", self.learning_rate, above=0, most=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the tiny model and return the exit status."""
    address = "experiments.demonstrations.tiny_training:train"
    return run(address, FlowConfig, argv, prog="experiments.demonstrations.mtl_flow")


if __name__ == "__main__":
    sys.exit(main())
