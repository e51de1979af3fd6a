"""`python -m experiments.gradnorm_pcgrad.train`."""

import sys
from collections.abc import Sequence

from experiments.gradnorm_pcgrad.config import PRESETS, GradNormPCGradConfig
from experiments.program.command import train_command


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit status."""
    return train_command(GradNormPCGradConfig, PRESETS, argv)


if __name__ == "__main__":
    sys.exit(main())
