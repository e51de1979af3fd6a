"""`python -m experiments.shared_dqn.evaluate`."""

import sys
from collections.abc import Sequence

from experiments.program.command import evaluate_command


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit status."""
    return evaluate_command("shared_dqn", argv)


if __name__ == "__main__":
    sys.exit(main())
