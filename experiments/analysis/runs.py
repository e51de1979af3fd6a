"""Finished runs on disk: where they are, and what their files hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.arrays import Array
from experiments.program.run_files import (
    METRICS_FILE,
    STEP,
    BrokenRunError,
    Columns,
    read_columns,
    read_config,
    read_evaluation,
)

SECONDS = "time/time_elapsed"  # since training began, without the pauses of an interrupted run
BLIND = "_blind"  # the end of the name of a run of the blind variant
BASELINE = "shared_dqn"  # the method with equal weights, which other methods are compared with
BASELINE_OF_AGENT = {"MultiTaskSAC": "shared_sac"}  # the same method where another algorithm makes another name of it
REFERENCE = "independent_dqn"  # the method without sharing, whose returns are the 1 of normalised scores


def weight_key(task: str) -> str:
    """The key in metrics.jsonl of the coefficient of a task's gradient."""
    return f"balancer/{task}/weight"


@dataclass(frozen=True, eq=False)  # compared by identity, because the contents are large
class Run:
    """One training run: `<results-dir>/<name>/seed_<seed>/`."""

    folder: Path
    name: str  # method, with "_blind" for the blind variant
    seed: int
    config: dict[str, Any] = field(repr=False)
    evaluation: dict[str, Any] = field(repr=False)

    @property
    def is_in_place(self) -> bool:
        """Whether the folder is named after the run."""
        return (self.folder.parent.name, self.folder.name) == (self.name, f"seed_{self.seed}")

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that the run was evaluated on."""
        return list(self.evaluation["tasks"])

    def solved_at(self, task: str) -> float | None:
        """The return that counts as solved in a task of the run; None if there is no such return."""
        threshold: float | None = self.evaluation["tasks"][task]["solved_at"]
        return threshold

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run, from config.json."""
        settings: dict[str, Any] = self.config["settings"]
        return settings

    @cached_property
    def columns(self) -> Columns:
        """The columns of metrics.jsonl.

        Raises:
            BrokenRunError: the file is not what a run writes.
        """
        return read_columns(self.folder / METRICS_FILE)

    def curve(self, key: str, against: str = STEP) -> tuple[Array, Array]:
        """Abscissae and values of one metric, from the lines that have both: (P,) each, with P = 0 if no line has."""
        none: tuple[NDArray[np.int64], Array] = np.empty(0, int), np.empty(0)
        rows, values = self.columns.get(key, none)
        others, abscissae = self.columns.get(against, none)
        _, of_values, of_others = np.intersect1d(rows, others, assume_unique=True, return_indices=True)
        return abscissae[of_others], values[of_values]


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
        BrokenRunError: a file is missing or is not what this project writes.
    """
    config = read_config(folder)
    evaluation = read_evaluation(folder, config)
    # The settings hold the words of the user, which are names of tasks or stand for tasks of other names.
    known = [tasks for tasks in (config["settings"].get("tasks"), config["tasks"]) if tasks is not None]
    if known and all(set(tasks) != set(evaluation["tasks"]) for tasks in known):
        raise BrokenRunError(f"{folder}: its evaluation is of other tasks than its settings")
    return Run(folder, config["run"], config["settings"]["seed"], config, evaluation)


def find_runs(results_dir: Path) -> Iterator[Run | BrokenRunError]:
    """Every run `<name>/seed_<k>` below `results_dir`, by name and seed, or an error where it cannot be read."""
    folders: list[Path] = []
    for parent in sorted(results_dir.iterdir()) if results_dir.is_dir() else ():
        try:  # `glob` would leave out what cannot be read
            folders += [path for path in (parent.iterdir() if parent.is_dir() else ()) if path.name.startswith("seed_")]
        except PermissionError as error:
            yield BrokenRunError(f"{parent}: {error.strerror}")
    folders = [path for path in folders if path.is_dir()]
    for folder in sorted(folders, key=lambda folder: (folder.parent.name, _seed_of(folder))):
        try:
            yield read_run(folder)
        except BrokenRunError as error:
            yield error


def load_runs(results_dir: Path) -> tuple[dict[str, list[Run]], list[BrokenRunError]]:
    """Finished runs by name, with their metrics read and seeds in order, and an error for each folder of no use.

    Runs of one name are replicates. So each seed counts once, and all runs of a name must have the tasks of the first
    one: a copy of a run, or a run on other tasks, is an error too. A folder that says in its config.json what its own
    name says comes before any other folder, so that none can take the place of a run by claiming its name and seed.
    """
    runs: dict[str, list[Run]] = {}
    errors: list[BrokenRunError] = []
    for found in sorted(find_runs(results_dir), key=lambda found: isinstance(found, Run) and not found.is_in_place):
        try:
            if isinstance(found, BrokenRunError):
                raise found
            _ = found.columns  # a run is of no use either if its curves cannot be read
            _check_replicate(found, runs.get(found.name, ()))
            runs.setdefault(found.name, []).append(found)
        except BrokenRunError as error:
            errors.append(error)
    return {name: sorted(runs[name], key=lambda run: run.seed) for name in sorted(runs)}, errors


def _check_replicate(run: Run, others: list[Run] | tuple[()]) -> None:
    for other in others:
        if run.seed == other.seed:
            raise BrokenRunError(f"{run.folder}: holds {run.name}, seed {run.seed}, as does '{other.folder}'")
        if set(run.tasks) != set(other.tasks):
            ours, theirs = ", ".join(run.tasks), ", ".join(other.tasks)
            raise BrokenRunError(f"{run.folder}: its tasks are {ours}, those of '{other.folder}' are {theirs}")


def _seed_of(folder: Path) -> tuple[int, str]:
    suffix = folder.name.removeprefix("seed_")
    return (int(suffix), "") if suffix.isdecimal() and len(suffix) < 20 else (-1, suffix)
