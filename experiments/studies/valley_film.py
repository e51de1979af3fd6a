"""`python -m experiments.studies.valley_film`: a moving picture of five balancers that cross a valley."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.program.command import run
from mtrl.limits import check_number


@dataclass(frozen=True)
class ValleyFilmConfig:
    """Cross the valley of `experiments.studies.static_heuristics` with each balancer, and draw all as they go."""

    seed: int = 0
    """Which of the study's starts and data: the same for every balancer."""

    steps: int = 600
    """Updates."""

    output: Path = Path("results/analysis/valley.webp")
    """The file, which ends in .gif or .webp. A file that is there is replaced."""

    def __post_init__(self) -> None:
        check_number("seed", self.seed, least=0, whole=True)
        check_number("steps", self.steps, least=1, most=100_000, whole=True)
        if self.output.suffix not in (".gif", ".webp"):
            raise ValueError(f"output is '{self.output}'; it must end in .gif or .webp")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the moving picture and return the exit status."""
    address = "experiments.studies.reports.valley_film:draw"
    return run(address, ValleyFilmConfig, argv, prog="experiments.studies.valley_film")


if __name__ == "__main__":
    sys.exit(main())
