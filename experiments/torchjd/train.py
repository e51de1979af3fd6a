"""`python -m experiments.torchjd.train`."""

import sys
from collections.abc import Sequence

from experiments.program.command import train_command
from experiments.torchjd.config import PRESETS, TorchJDConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(TorchJDConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
