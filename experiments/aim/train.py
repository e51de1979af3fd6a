"""`python -m experiments.aim.train`."""

import sys
from collections.abc import Sequence

from experiments.aim.config import PRESETS, AIMConfig
from experiments.program.command import train_command


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(AIMConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
