"""`python -m experiments.supervised.train`."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.supervised.config import TrainConfig


def train(config: TrainConfig) -> None:
    """Train one model; see `experiments.supervised.runner`."""
    from experiments.supervised.runner import train_model  # noqa: PLC0415 - torch loads only when needed

    train_model(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return run(train, TrainConfig, argv, prog="experiments.supervised.train")


if __name__ == "__main__":
    sys.exit(main())
