"""`python -m experiments.tune --methods shared_dqn rgb`: search the settings of methods by Optuna."""

import sys
from collections.abc import Sequence

from experiments.program.command import run
from experiments.tune.config import PROG, TuneConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Search and return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    cut = words.index("--") if "--" in words else len(words)
    return run("experiments.tune.tuning:tune", TuneConfig, words[:cut], prog=PROG, arguments=[words[cut + 1 :]])


if __name__ == "__main__":
    sys.exit(main())
