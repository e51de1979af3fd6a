"""`python -m experiments.analyze_results`: compare finished runs in tables and figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.analysis.config import AnalyzeConfig
from experiments.program.command import run


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse and return the exit status."""
    address = "experiments.analysis.analyze_results:analyze"
    return run(address, AnalyzeConfig, argv, prog="experiments.analyze_results")


if __name__ == "__main__":
    sys.exit(main())
