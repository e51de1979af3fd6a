"""`python -m experiments.demonstrations.loss_aggregation`: every loss term of a tiny random model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.demonstrations.config import VideoConfig
from experiments.program.command import run


@dataclass(frozen=True)
class AggregationConfig(VideoConfig):
    """Compute the losses of a tiny random model on a video of moving squares, and print each term."""

    beta: float = 1.0
    """Weight of the three KL divergences."""

    lambda_recon: float = 1.0
    """Weight of the reconstruction."""

    entropy_weight: float = 0.1
    """Weight of the cluster entropy, which is subtracted from the loss."""

    lambda_gram: float = 0.05
    """Weight of the Gram penalty."""

    lambda_att_dyn: float = 0.1
    """Weight of the attention dynamics."""

    lambda_gan: float = 0.1
    """Weight of the adversarial task."""

    adversarial: bool = True
    """Use a discriminator, which adds a fourth task."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the loss terms and return the exit status."""
    address = "experiments.demonstrations.loss_terms:print_terms"
    return run(address, AggregationConfig, argv, prog="experiments.demonstrations.loss_aggregation")


if __name__ == "__main__":
    sys.exit(main())
