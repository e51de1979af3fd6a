"""`python -m experiments.world_model.train`."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.world_model.config import WorldModelConfig


def train(config: WorldModelConfig) -> None:
    """Train one world model; see `experiments.world_model.runner`."""
    from experiments.world_model import runner  # noqa: PLC0415 - torch loads only when there is something to train

    runner.train(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return run(train, WorldModelConfig, argv, prog="experiments.world_model.train")


if __name__ == "__main__":
    sys.exit(main())
