"""`python -m experiments.archive`: what is worth keeping of finished runs, small enough for version control."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.analysis.config import ArchiveConfig
from experiments.program.command import run


def main(argv: Sequence[str] | None = None) -> int:
    """Copy and return the exit status."""
    return run("experiments.analysis.archive:archive", ArchiveConfig, argv, prog="experiments.archive")


if __name__ == "__main__":
    sys.exit(main())
