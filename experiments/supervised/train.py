"""`python -m experiments.supervised.train`: a model of several labels of one input, described in YAML."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.supervised.config import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    address = "experiments.supervised.runner:train_model"
    return run(address, TrainConfig, argv, prog="experiments.supervised.train")


if __name__ == "__main__":
    sys.exit(main())
