"""`python -m experiments.gradnorm.train`."""

import sys
from collections.abc import Sequence

from experiments.gradnorm.config import PRESETS, GradNormConfig
from experiments.program.command import train_command


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(GradNormConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
