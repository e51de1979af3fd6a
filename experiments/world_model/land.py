"""`python -m experiments.world_model.land`: a landing policy inside the world model's roll-outs, and outside."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.world_model.config import LandingConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and return the exit status."""
    return run("experiments.world_model.landing:compare", LandingConfig, argv, prog="experiments.world_model.land")


if __name__ == "__main__":
    sys.exit(main())
