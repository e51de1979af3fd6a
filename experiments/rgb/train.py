"""`python -m experiments.rgb.train`."""

import sys
from collections.abc import Sequence

from experiments.program.command import train_command
from experiments.rgb.config import PRESETS, RGBConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(RGBConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
