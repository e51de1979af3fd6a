"""The runs of a sweep: every method in every variant with every seed."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import tyro

import experiments
from experiments.analysis.runs import CHECKPOINT_FILE, CONFIG_FILE, EVALUATION_FILE, PREVIOUS_FILE
from experiments.program.flags import UsageError, parse
from experiments.training.config import TrainConfig, Variant

# Flags of a run that are not a sweep's to pass on, and why.
_KEPT = "a sweep continues its runs and skips finished ones; for others give another --results-dir"
REFUSED_FLAGS = {
    "--variant": "a sweep has --variants, before the '--'",
    "--seed": "a sweep has --seeds, before the '--'",
    "--results-dir": "give it before the '--'",
    "--overwrite": _KEPT,
    "--no-resume": _KEPT,
    "--device": "a run of a sweep has one CPU core, which at these sizes is faster than a GPU",
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    package: str
    """What trains: `experiments.<package>.train`."""

    config: TrainConfig
    """Its settings, with an absolute results folder."""

    flags: tuple[str, ...]
    """The words that make its settings."""

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.config.run_name} seed {self.config.seed}"

    @property
    def folder(self) -> Path:
        """Where its files go."""
        return self.config.run_dir

    @property
    def log(self) -> Path:
        """What it prints; beside its folder, which is the run's alone."""
        return self.folder.with_suffix(".log")

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / EVALUATION_FILE).exists()

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any((self.folder / name).exists() for name in (CHECKPOINT_FILE, PREVIOUS_FILE))


def methods() -> dict[str, Mapping[str, TrainConfig]]:
    """Every method's presets: those of the packages in `experiments` that train an agent."""
    found = {}
    for path in sorted(path for folder in experiments.__path__ for path in Path(folder).glob("*/train.py")):
        name = path.parent.name
        if path.with_name("config.py").exists():
            presets = getattr(importlib.import_module(f"experiments.{name}.config"), "PRESETS", {})
            if isinstance(presets.get("default"), TrainConfig):
                found[name] = presets
    return found


def plan(
    names: Sequence[str],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    results_dir: Path,
    train_flags: Sequence[str],
    prog: str,
) -> list[PlannedRun]:
    """The runs of a sweep, seed by seed, so that an early look at the results compares all methods.

    Args:
        names: methods; `torchjd:CAGrad` is `torchjd --aggregator CAGrad`.
        variants: in which variants; a method that has none runs once per seed.
        seeds: with which seeds.
        results_dir: where the runs go.
        train_flags: further words for each run.
        prog: the program's name in messages about these.

    Raises:
        UsageError: a method is unknown, or a flag is one of `REFUSED_FLAGS`.
        SystemExit: `train_flags` are not those of a method; a line on stderr says what is wrong.
    """
    for word in train_flags:
        flag = word.partition("=")[0].replace("_", "-")
        if flag in REFUSED_FLAGS:
            raise UsageError(f"argument {flag} after '--': {REFUSED_FLAGS[flag]}")
    results_dir = results_dir.absolute()
    known = methods()
    families = [list(_family(name, known, variants, results_dir, train_flags, prog)) for name in names]
    runs = [
        dataclasses.replace(
            run, config=dataclasses.replace(run.config, seed=seed), flags=(*run.flags, "--seed", str(seed))
        )
        for seed in seeds
        for family in families
        for run in family
    ]
    return list({run.folder: run for run in runs}.values())


def _family(
    name: str,
    known: Mapping[str, Mapping[str, TrainConfig]],
    variants: Sequence[Variant],
    results_dir: Path,
    train_flags: Sequence[str],
    prog: str,
) -> Iterator[PlannedRun]:
    """A method's runs with one seed."""
    package, colon, aggregator = name.partition(":")
    if package not in known:
        raise UsageError(f"unknown method {package!r}; choose from {', '.join(known)}")
    if colon and package != "torchjd":
        raise UsageError(f"method {name!r}: only torchjd takes an aggregator, as in torchjd:CAGrad")
    presets = known[package]
    config_type = type(presets["default"])
    flags = (*train_flags, "--results-dir", str(results_dir), *(("--aggregator", aggregator) if colon else ()))
    config = parse(config_type, flags, prog=f"{prog}: {name}", presets=presets)
    if not _has_variants(config_type):
        yield PlannedRun(package, config, flags)
        return
    for variant in dict.fromkeys(variants):
        yield PlannedRun(package, dataclasses.replace(config, variant=variant), (*flags, "--variant", variant))


def _has_variants(config_type: type[TrainConfig]) -> bool:
    kind = get_type_hints(config_type, include_extras=True)["variant"]
    return tyro.conf.Fixed not in getattr(kind, "__metadata__", ())


def refuse_other_settings(runs: Sequence[PlannedRun], free: Sequence[str]) -> None:
    """See to it that no run that is there already, finished or not, passes for one of this sweep and is another.

    Args:
        runs: the sweep's.
        free: names of settings that may differ.

    Raises:
        UsageError: one was trained with other settings.
    """
    for run in runs:
        if not (run.is_finished or run.is_begun):
            continue
        try:
            before = json.loads((run.folder / CONFIG_FILE).read_text())["settings"]
            now = json.loads(json.dumps(run.config.settings))  # as the file would hold them
            names = [name for name in now if name in before and name not in free]
            differences = [
                f"{name} was {before[name]!r} and is {now[name]!r}" for name in names if before[name] != now[name]
            ]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UsageError(f"'{run.folder}' holds a run that can't be read ({error}); move it away") from None
        if differences:
            raise UsageError(
                f"'{run.folder}' holds a run with other settings: {', '.join(differences)}; "
                "repeat its settings, or give another --results-dir"
            )
