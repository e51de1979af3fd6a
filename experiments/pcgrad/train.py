"""`python -m experiments.pcgrad.train`."""

import sys
from collections.abc import Sequence

from experiments.pcgrad.config import PRESETS, PCGradConfig
from experiments.program.command import train_command


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(PCGradConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
