"""`python -m experiments.independent_dqn.evaluate`."""

import sys
from collections.abc import Sequence

from experiments.independent_dqn.config import IndependentDQNEvaluateConfig
from experiments.program.command import evaluate_command


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit status."""
    return evaluate_command("independent_dqn", argv, IndependentDQNEvaluateConfig)


if __name__ == "__main__":
    sys.exit(main())
