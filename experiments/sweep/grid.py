"""The list of the runs of a sweep: every method in every variant with every seed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import tyro

from experiments.methods import METHODS
from experiments.program.flags import UsageError
from experiments.program.run_files import BrokenRunError, read_config, read_evaluation
from experiments.program.run_folder import is_begun, is_finished
from experiments.program.saved_run import differences
from experiments.training.config import TrainConfig, Variant

# Flags of a run that a sweep does not pass on, and why.
_KEPT = "a sweep continues runs and skips finished ones; to start anew, give another --results-dir"
REFUSED_FLAGS = {
    "--variant": "a sweep has --variants, before the '--'",
    "--seed": "a sweep has --seeds, before the '--'",
    "--results-dir": "give it before the '--'",
    "--existing": _KEPT,
    "--overwrite": _KEPT,
    "--no-resume": _KEPT,
    "--device": "a run of a sweep has one CPU core, which at these sizes is faster than a GPU",
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    package: str
    """The package of the method: `experiments.<package>.train` trains it."""

    config: TrainConfig
    """The settings of the run, with an absolute results folder."""

    flags: tuple[str, ...]
    """The words on the command line that give these settings."""

    @property
    def name(self) -> str:
        """The name of the run, for people."""
        return f"{self.config.run_name} seed {self.config.seed}"

    @property
    def folder(self) -> Path:
        """The folder of the run's files."""
        return self.config.run_dir

    @property
    def log(self) -> Path:
        """The file for the output of the run. It lies beside the folder, to which only the run itself writes."""
        return self.folder.with_suffix(".log")

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished."""
        return is_finished(self.folder)

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint from which the run can be continued."""
        return is_begun(self.folder)


def plan(
    names: Sequence[str],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    results_dir: Path,
    train_flags: Sequence[str],
    prog: str,
    tuned: Path | None = None,
) -> list[PlannedRun]:
    """The runs of a sweep, seed by seed, so that an early look at the results compares all methods.

    Args:
        names: names of methods; `torchjd:CAGrad` is `torchjd --aggregator CAGrad`.
        variants: the variants to train; a method without variants runs once per seed.
        seeds: the seeds to train with.
        results_dir: the folder of the runs.
        train_flags: further words for the command line of each run.
        prog: the program's name in messages about `train_flags`.
        tuned: the folder of a search, whose best settings the runs take. Default: the methods' defaults.

    Raises:
        UsageError: a method is unknown, a flag is one of `REFUSED_FLAGS`, or the search has no settings for a run.
        SystemExit: a method refuses `train_flags`; a line on stderr says why.
    """
    for flag in map(flag_of, train_flags):
        if flag in REFUSED_FLAGS:
            raise UsageError(f"argument {flag} after '--': {REFUSED_FLAGS[flag]}")
        if flag == "--settings" and tuned is not None:
            raise UsageError(f"argument {flag} after '--': --tuned gives every run a file of settings; give flags")
    results_dir = results_dir.absolute()
    families = [list(_family(name, variants, results_dir, train_flags, prog, tuned)) for name in names]
    runs = [
        dataclasses.replace(
            run, config=dataclasses.replace(run.config, seed=seed), flags=(*run.flags, "--seed", str(seed))
        )
        for seed in seeds
        for family in families
        for run in family
    ]
    return list({run.folder: run for run in runs}.values())


def flag_of(word: str) -> str:
    """The flag that a word of a command line is, without its value and with hyphens, as in `--batch-size`."""
    return word.partition("=")[0].replace("_", "-")


def _family(
    name: str,
    variants: Sequence[Variant],
    results_dir: Path,
    train_flags: Sequence[str],
    prog: str,
    tuned: Path | None,
) -> Iterator[PlannedRun]:
    """The runs of a method, one for each variant, with the default seed."""
    package, colon, aggregator = name.partition(":")
    if package not in METHODS:
        raise UsageError(f"unknown method {package!r}; choose from {', '.join(METHODS)}")
    if colon and package != "torchjd":
        raise UsageError(f"method {name!r}: only torchjd takes an aggregator, as in torchjd:CAGrad")
    method = METHODS[package]
    flags = (*train_flags, "--results-dir", str(results_dir), *(("--aggregator", aggregator) if colon else ()))
    several = _has_variants(method.config_type)
    for chosen in [("--variant", variant) for variant in dict.fromkeys(variants)] if several else [()]:
        words = (*flags, *chosen)
        config = method.parse(words, f"{prog}: {name}")
        if tuned is not None:
            best = tuned.absolute() / config.run_name / "best.json"
            if not best.is_file():
                raise UsageError(f"argument --tuned: there is no '{best}'; experiments.tune makes it")
            words = ("--settings", str(best), *words)
            config = method.parse(words, f"{prog}: {name}")
        yield PlannedRun(package, config, words)


def _has_variants(config_type: type[TrainConfig]) -> bool:
    kind = get_type_hints(config_type, include_extras=True)["variant"]
    return tyro.conf.Fixed not in getattr(kind, "__metadata__", ())


def refuse_other_settings(runs: Sequence[PlannedRun]) -> None:
    """Make sure that each run that is in its folder, finished or not, has the settings of this sweep.

    Args:
        runs: the runs of the sweep.

    Raises:
        UsageError: a run was trained with other settings.
    """
    for run in runs:
        if not (run.is_finished or run.is_begun):
            continue
        try:
            config = read_config(run.folder)
            before = config["settings"]
            if run.is_finished:
                read_evaluation(run.folder, config)
        except BrokenRunError as error:
            raise UsageError(f"'{run.folder}' holds a run that can't be read ({error}); move it away") from None
        now = json.loads(json.dumps(run.config.record))  # as the file would hold them
        known = {name: value for name, value in now.items() if name in before}
        if changed := differences({name: before[name] for name in known}, known, run.config.free_settings):
            raise UsageError(
                f"'{run.folder}' holds a run with other settings: {', '.join(changed)}; "
                "repeat its settings, or give another --results-dir"
            )
