"""`python -m experiments.compare_weights`: learned task weights of finished runs side by side, in W&B and as PNG."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.analysis.config import CompareWeightsConfig
from experiments.program.command import run


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and return the exit status."""
    address = "experiments.analysis.compare_weights:compare_weights"
    return run(address, CompareWeightsConfig, argv, prog="experiments.compare_weights")


if __name__ == "__main__":
    sys.exit(main())
