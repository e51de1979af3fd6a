"""`python -m experiments.supervised.compare`."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.supervised.config import CompareConfig


def compare(config: CompareConfig) -> None:
    """Compare balancers; see `experiments.supervised.comparison`."""
    from experiments.supervised.comparison import compare_balancers  # noqa: PLC0415 - torch loads only when needed

    compare_balancers(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and return the exit status."""
    return run(compare, CompareConfig, argv, prog="experiments.supervised.compare")


if __name__ == "__main__":
    sys.exit(main())
