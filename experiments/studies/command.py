"""The flags that all four studies have, their output folder, and the way from a command line to a report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from experiments.program.command import resolve, run
from experiments.program.flags import UsageError, parse_seeds
from experiments.program.locking import LOCK_FILE, locked
from experiments.program.stopping import StoppedError, disk_errors
from mtrl.limits import check_number

QUICK_SEEDS = 2
QUICK_STEPS = 60


@dataclass(frozen=True)
class StudyConfig:
    """Flags of every study."""

    seeds: tuple[str, ...] = ("0-9",)
    """Seeds and ranges of seeds, such as `0-9` or `3 5 8-10`. For one seed, every method gets the same data, the same
    first weights and the same number of updates."""

    steps: int = 600
    """Updates of a training."""

    learning_rate: float = 1e-2
    """Step size of Adam, the same for every method."""

    policy_lr: float = 1e-2
    """Learning rate of AIM's thresholds."""

    quick: bool = False
    """A trial run with the first 2 of the seeds and at most 60 updates. Its numbers mean nothing."""

    output_dir: Path = Path("results/analysis/studies")
    """Folder for report.md, results.json and the figures."""

    overwrite: bool = False
    """Replace the files in the output folder."""

    quiet: bool = False
    """Show no progress bar and no report, only one line at the end that says where the results are."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, least=1, most=1_000_000, whole=True)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("policy_lr", self.policy_lr, above=0)
        parse_seeds(self.seeds)

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds, without repetition."""
        return parse_seeds(self.seeds)[: QUICK_SEEDS if self.quick else None]

    @property
    def num_steps(self) -> int:
        """The number of updates of a training."""
        return min(self.steps, QUICK_STEPS) if self.quick else self.steps

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the numbers depend on, in a form that JSON can hold."""
        settings = asdict(self)
        for name in ("output_dir", "overwrite", "quiet", "quick"):
            del settings[name]
        return {**settings, "seeds": self.seed_numbers, "steps": self.num_steps}


@dataclass(frozen=True)
class GuidedStudyConfig(StudyConfig):
    """Flags of the studies that let the user choose the size of AIM's guidance set."""

    train: int = 100
    """Rows that every method trains on."""

    guidance: int = 20
    """Rows that AIM holds out as its guidance set. All other methods train on them as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "guidance"):
            check_number(name, getattr(self, name), least=1, most=100_000, whole=True)


Config = TypeVar("Config", bound=StudyConfig)


def study_command(address: str, config_type: type[Config], argv: Sequence[str] | None) -> int:
    """Parse the flags, run a study, write and print its report, and return the exit status.

    Nothing is written unless the study reaches its end.

    Args:
        address: a function that takes the configuration and returns a `Report`, for example
            `"experiments.studies.reports.sabotage:study"`. It is imported only when it is needed, because PyTorch and
            matplotlib take their time.
        config_type: the dataclass whose fields are the flags.
        argv: the words after the program's name. Default: those of this process.

    Returns:
        0 for a finished study, whatever became of its claims, and 1 if a number became infinite or NaN in a training.

    Raises:
        SystemExit: with status 2 if the command cannot be carried out.
    """
    name = address.partition(":")[0].rpartition(".")[2]
    prog = f"experiments.studies.{name}"

    def main(config: Config) -> int:
        refuse_existing(config.output_dir, config.overwrite)
        try:
            report: Any = resolve(address)(config)
        except FloatingPointError as error:
            print(f"{prog}: {error}; a lower --learning-rate may help", file=sys.stderr)
            return 1
        with writing(config.output_dir, config.overwrite):
            report.write(config.output_dir)
        if not config.quiet:
            print(f"\n{report.markdown}")
        print(f"results in {config.output_dir}")
        return 0

    return run(main, config_type, argv, prog=prog)


UNFINISHED = ".unfinished"
"""A file in the folder while results are written. Where a process was killed meanwhile, the same command goes ahead."""


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Check before any time is spent that the output folder is empty or missing, and can be created.

    Raises:
        UsageError: it cannot be created, or holds files that must not be replaced.
    """
    in_way = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if in_way is not None:
        raise UsageError(f"'{in_way}' is a file; results need a folder")
    names = {path.name for path in folder.iterdir()} - {LOCK_FILE} if folder.exists() else set()
    if names and not overwrite and UNFINISHED not in names:
        raise UsageError(f"'{folder}' is not empty; replace it with --overwrite or give another --output-dir")
    # The only sure test is to create the folder. It is removed again, because a study that fails must leave nothing.
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with disk_errors(folder, UsageError):
        folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        with suppress(OSError):  # another program may have written to the folder in the meantime
            path.rmdir()


@contextmanager
def writing(folder: Path, overwrite: bool) -> Iterator[None]:
    """Inside this context, the results of a study are written, and no other process writes into the folder.

    Raises:
        UsageError: another process writes there, or has filled the folder while the study went on.
        StoppedError: the disk is full, or the folder can no longer be written to.
    """
    with disk_errors(folder, StoppedError):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            refuse_existing(folder, overwrite)
            mark = folder / UNFINISHED
            mark.touch()
            yield
            mark.unlink()
