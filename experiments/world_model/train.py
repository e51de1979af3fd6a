"""`python -m experiments.world_model.train`: a video model of the lander, on four objectives."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.world_model.config import WorldModelConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    address = "experiments.world_model.runner:train"
    return run(address, WorldModelConfig, argv, prog="experiments.world_model.train")


if __name__ == "__main__":
    sys.exit(main())
