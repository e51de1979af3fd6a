"""What the four programs have in common: their flags, their output folder, how they end."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from experiments.program.command import run
from experiments.program.flags import UsageError, parse_seeds
from experiments.program.stopping import disk_errors

if TYPE_CHECKING:
    from experiments.studies.report import Report

QUICK_SEEDS = 2
QUICK_STEPS = 60
MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class StudyConfig:
    """Flags of every study."""

    seeds: tuple[str, ...] = ("0-9",)
    """Seeds, or ranges of seeds: `0-9`, `3 5 8-10`. Data, first weights and steps of a seed are the same for every
    method."""

    steps: int = 600
    """Updates of a training."""

    learning_rate: float = 1e-2
    """Step size of Adam, the same for every method."""

    policy_lr: float = 1e-2
    """Learning rate of AIM's thresholds."""

    quick: bool = False
    """A trial run: the first 2 of the seeds and at most 60 updates. Its numbers mean nothing."""

    output_dir: Path = Path("results/analysis/studies")
    """Where report.md, results.json and the figures go."""

    overwrite: bool = False
    """Replace what is there."""

    quiet: bool = False
    """No progress and no report in the terminal."""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps is {self.steps}; it must be between 1 and {MOST_STEPS}")
        for name in ("learning_rate", "policy_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        parse_seeds(self.seeds)

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds, each once."""
        return parse_seeds(self.seeds)[: QUICK_SEEDS if self.quick else None]

    @property
    def num_steps(self) -> int:
        """Updates of a training."""
        return min(self.steps, QUICK_STEPS) if self.quick else self.steps

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON holds it."""
        settings = asdict(self)
        for name in ("output_dir", "overwrite", "quiet", "quick"):
            del settings[name]
        return {**settings, "seeds": self.seed_numbers, "steps": self.num_steps}


Config = TypeVar("Config", bound=StudyConfig)


def study_command(
    name: str, study: Callable[[Config], Report], config_type: type[Config], argv: Sequence[str] | None
) -> int:
    """Parse the flags, run the study, write and print its report, return the exit status.

    It is 0 whatever becomes of the claims; 1 if a training came to numbers that are not finite, and 2 for a command
    that can't be carried out. Nothing is written then.
    """
    prog = f"experiments.studies.{name}"

    def main(config: Config) -> int:
        refuse_existing(config)
        try:
            report = study(config)
        except FloatingPointError as error:
            print(f"{prog}: {error}; a lower --learning-rate may help", file=sys.stderr)
            return 1
        report.write(config.output_dir)
        if not config.quiet:
            print(f"\n{report.markdown}\nresults in {config.output_dir}")
        return 0

    return run(main, config_type, argv, prog=prog)


def refuse_existing(config: StudyConfig) -> None:
    """Before any time is spent: the output folder must be one that can be made, and free.

    Raises:
        UsageError: it is not.
    """
    folder = config.output_dir
    in_way = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if in_way is not None:
        raise UsageError(f"'{in_way}' is a file; results need a folder")
    if not config.overwrite and folder.exists() and any(folder.iterdir()):
        raise UsageError(f"'{folder}' is not empty; replace it with --overwrite or give another --output-dir")
    # Whether it can be made shows only when it is; the report makes it again when there is something to put in.
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with disk_errors(folder, UsageError):
        folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        with suppress(OSError):  # another program may have put something there by now
            path.rmdir()
