"""`python -m experiments.studies.toy`: two losses in the plane and five starts. Who reaches the Pareto front?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.program.command import run
from experiments.studies.toy_problem import LEARNING_RATE, SCALE, STEPS, Formula
from mtrl.limits import check_number

QUICK_STEPS = 300


@dataclass(frozen=True)
class ToyConfig:
    """Descend the toy problem of CAGrad and Nash-MTL with every balancer, and see which starts reach the Pareto front.

    The defaults are the published settings and take about 3 minutes of one core.
    """

    balancers: tuple[str, ...] = ()
    """Names of balancers, such as `pcgrad torchjd:UPGrad`. Default: all of this project's and six of TorchJD's."""

    steps: int = STEPS
    """Updates of a path at most. A path ends earlier when it has been at the front for 2,000 updates."""

    learning_rate: float = LEARNING_RATE
    """Step size of Adam."""

    scale: float = SCALE
    """Factor of the first loss: 0.1 in Nash-MTL's version of the problem, 1 in CAGrad's."""

    formula: Formula = "program"
    """The sign of tanh in the second loss: that of the authors' programs, or that which their papers print."""

    hold: int = 50
    """A balancer of TorchJD computes its weights at every so many updates and keeps them in between, as Nash-MTL-50
    does in its paper. With 1 it computes them at every update, which takes about an hour."""

    tolerance: float = 0.1
    """A path has reached the front when it comes this close to the Pareto set, in the plane of the parameters."""

    quick: bool = False
    """A trial run of at most 300 updates. Its numbers mean nothing."""

    output_dir: Path = Path("results/analysis/studies/toy")
    """Where report.md, results.json and the figures go."""

    overwrite: bool = False
    """Replace what is there."""

    quiet: bool = False
    """Show no progress bar and no report, only one line at the end that says where the results are."""

    def __post_init__(self) -> None:
        for name in ("steps", "hold"):
            check_number(name, getattr(self, name), least=1, most=10**6, whole=True)
        for name in ("learning_rate", "scale", "tolerance"):
            check_number(name, getattr(self, name), above=0)

    @property
    def num_steps(self) -> int:
        """Updates of a path at most."""
        return min(self.steps, QUICK_STEPS) if self.quick else self.steps

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON holds it; the balancers are named with their numbers."""
        settings = asdict(self)
        for name in ("balancers", "output_dir", "overwrite", "quiet", "quick"):
            del settings[name]
        return {**settings, "steps": self.num_steps}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status.

    It is 1 if a path leaves the plane, and 2 for a command that can't be carried out. Nothing is written then.
    """
    return run("experiments.studies.reports.toy:study", ToyConfig, argv, prog="experiments.studies.toy")


if __name__ == "__main__":
    sys.exit(main())
