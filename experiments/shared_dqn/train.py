"""`python -m experiments.shared_dqn.train`."""

import sys
from collections.abc import Sequence

from experiments.program.command import train_command
from experiments.shared_dqn.config import PRESETS, SharedDQNConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(SharedDQNConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
