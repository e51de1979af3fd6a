"""`python -m experiments.sweep --methods gradnorm pcgrad --seeds 0-9`: many runs side by side, through Ray."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.sweep.config import SweepConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep and return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    cut = words.index("--") if "--" in words else len(words)
    train_flags = words[cut + 1 :]
    target = "experiments.sweep.sweeping:sweep"
    return run(target, SweepConfig, words[:cut], prog="experiments.sweep", arguments=[train_flags])


if __name__ == "__main__":
    sys.exit(main())
