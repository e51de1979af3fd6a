"""`python -m experiments.supervised.train`."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.supervised.config import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return run("experiments.supervised.runner:train_model", TrainConfig, argv, prog="experiments.supervised.train")


if __name__ == "__main__":
    sys.exit(main())
