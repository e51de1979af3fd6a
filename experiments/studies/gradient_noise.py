"""`python -m experiments.studies.gradient_noise`: does noise or conflict between tasks lead updates astray?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from experiments.program.command import run
from experiments.program.flags import parse_seeds
from experiments.training.config import Variant
from mtrl.limits import Limits, check_fields

Count = Annotated[int, Limits(least=1)]
Batches = Annotated[int, Limits(least=4, most=10_000)]


@dataclass(frozen=True)
class GradientNoiseConfig:
    """Measure, while equal weights train, how noisy task gradients are and how much they conflict.

    At several moments of a training, many batches are drawn with the weights as they are. The report has the cosine
    between two batches of one task (noise), between two tasks as an update sees it, and between two tasks once the
    noise is averaged out (conflict); and for every balancer the cosine between its update and the true gradient of the
    summed losses, which says how much of an update's length goes downhill.
    """

    variant: Variant = "blind"
    """The variant to train."""

    seeds: tuple[str, ...] = ("0-2",)
    """Seeds and ranges of seeds: a training for each."""

    balancers: tuple[str, ...] = ("equal", "normalised", "memory", "gradnorm", "pcgrad", "rgb", "aim")
    """Balancers to measure. `equal+memory` is equal weights turned by `mtrl.DirectionMemory`, and so for the others."""

    total_steps: Count = 600_000
    """Environment steps of each training."""

    measurements: Count = 6
    """Moments of the training at which is measured, evenly spaced; the last is its end."""

    batches: Batches = 64
    """Batches at each measurement: half for the updates, half for the true gradient."""

    warm_up: Annotated[int, Limits(least=0)] = 200
    """Further batches that a balancer sees before it is measured, with the weights as they are."""

    output_dir: Path = Path("results/analysis/studies/gradient_noise")
    """Where report.md, results.json and the figure go."""

    overwrite: bool = False
    """Replace what is there."""

    quiet: bool = False
    """Show no progress bar and no report, only one line at the end that says where the results are."""

    def __post_init__(self) -> None:
        check_fields(self)
        parse_seeds(self.seeds)
        if not self.balancers:
            raise ValueError("balancers: there are none; give one or more")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the numbers depend on."""
        left_out = ("output_dir", "overwrite", "quiet")
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return its exit status."""
    address = "experiments.studies.reports.gradient_noise:study"
    return run(address, GradientNoiseConfig, argv, prog="experiments.studies.gradient_noise")


if __name__ == "__main__":
    sys.exit(main())
