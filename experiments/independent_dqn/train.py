"""`python -m experiments.independent_dqn.train`."""

import sys
from collections.abc import Sequence

from experiments.independent_dqn.config import PRESETS, IndependentDQNConfig
from experiments.program.command import train_command


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(IndependentDQNConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
