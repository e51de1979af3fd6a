"""`python -m experiments.brc.train`."""

import sys
from collections.abc import Sequence

from experiments.brc.config import PRESETS, BRCConfig
from experiments.program.command import train_command


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(BRCConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
