"""`python -m experiments.pcgrad.train`."""

import sys
from collections.abc import Sequence

from experiments.commands import train_command
from experiments.pcgrad.config import PRESETS, PCGradConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(PCGradConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
