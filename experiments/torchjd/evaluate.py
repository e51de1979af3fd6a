"""`python -m experiments.torchjd.evaluate`."""

import sys
from collections.abc import Sequence

from experiments.program.command import evaluate_command
from experiments.torchjd.config import TorchJDEvaluateConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit status."""
    return evaluate_command("torchjd", argv, TorchJDEvaluateConfig)


if __name__ == "__main__":
    sys.exit(main())
