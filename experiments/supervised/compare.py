"""`python -m experiments.supervised.compare`: balancers side by side over seeds, on several labels of one input."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.supervised.config import CompareConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and return the exit status."""
    address = "experiments.supervised.comparison:compare_balancers"
    return run(address, CompareConfig, argv, prog="experiments.supervised.compare")


if __name__ == "__main__":
    sys.exit(main())
