"""`python -m experiments.world_model.evaluate`: how well a trained world model does on video that it has never seen."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.world_model.config import FreshVideoConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit status."""
    address = "experiments.world_model.fresh_video:evaluate_run"
    return run(address, FreshVideoConfig, argv, prog="experiments.world_model.evaluate")


if __name__ == "__main__":
    sys.exit(main())
