"""Finished runs on disk: where their files are, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.arrays import Array
from experiments.program.run_folder import CONFIG_FILE, EVALUATION_FILE, METRICS_FILE
from mtrl.files import is_number, parse_numbers

STEP = "env_step"  # the axis of every curve: environment steps, over all tasks
SECONDS = "time/time_elapsed"  # since training began, without the pauses of an interrupted run
BLIND = "_blind"  # the end of the name of a run of the blind variant
BASELINE = "shared_dqn"  # the method with equal weights, which other methods are compared with
REFERENCE = "independent_dqn"  # the method without sharing, whose returns are the 1 of normalised scores
LARGEST = 1e15  # no run has larger numbers


def weight_key(task: str) -> str:
    """The key in metrics.jsonl of the coefficient of a task's gradient."""
    return f"balancer/{task}/weight"


class BrokenRunError(ValueError):
    """A folder looks like a run and cannot be read as one; the message is one line."""


@dataclass(frozen=True, eq=False)  # compared by identity, because the contents are large
class Run:
    """One training run: `<results-dir>/<name>/seed_<seed>/`."""

    folder: Path
    name: str  # method, with "_blind" for the blind variant
    seed: int
    config: dict[str, Any] = field(repr=False)
    evaluation: dict[str, Any] = field(repr=False)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that the run was evaluated on."""
        return list(self.evaluation["tasks"])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run, from config.json."""
        settings: dict[str, Any] = self.config["settings"]
        return settings

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, read again at each access.

        Raises:
            BrokenRunError: the file cannot be read, or a line is not an object of numbers.
        """
        path = self.folder / METRICS_FILE
        try:
            return [parse_numbers(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise BrokenRunError(f"{path}: {error}") from None

    @cached_property
    def columns(self) -> dict[str, tuple[NDArray[np.int64], Array]]:
        """For each key of metrics.jsonl, the numbers of the lines that have this key, and the values in these lines.

        Columns take a tenth of the memory of the lines. Values that are NaN, infinite or above 1e15 are left out.

        Raises:
            BrokenRunError: the file cannot be read, or its environment steps go backwards.
        """
        columns: dict[str, tuple[list[int], list[float]]] = {}
        for number, line in enumerate(self.metrics):
            for key, value in line.items():
                if abs(value) < LARGEST:
                    rows, values = columns.setdefault(key, ([], []))
                    rows.append(number)
                    values.append(value)
        arrays = {key: (np.array(rows), np.array(values, float)) for key, (rows, values) in columns.items()}
        if STEP in arrays and (np.diff(arrays[STEP][1], prepend=0) < 0).any():
            raise BrokenRunError(f"{self.folder / METRICS_FILE}: its environment steps go backwards")
        return arrays

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
    config, evaluation = (_read_json(folder, name) for name in (CONFIG_FILE, EVALUATION_FILE))
    try:
        run = Run(folder, str(config["run"]), int(config["settings"]["seed"]), config, evaluation)
        _check_evaluation(evaluation)
        if not run.name or not all(name.isprintable() for name in (run.name, *run.tasks)):
            raise ValueError("a name can't be printed")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BrokenRunError(f"{folder}: not a run of this project ({type(error).__name__}: {error})") from None
    return run


def _read_json(folder: Path, name: str) -> Any:
    path = folder / name
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BrokenRunError(f"{folder}: not finished ({name} is missing)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenRunError(f"{path}: {error}") from None


def _check_evaluation(evaluation: dict[str, Any]) -> None:
    """Let the contents of an evaluation.json pass if all its numbers are there and are possible.

    Raises:
        ValueError: a number is not possible. Missing or ill-typed entries raise whatever their use raises.
    """
    results = evaluation["tasks"].values()
    rates = [result["success_rate"] for result in results]
    means = [each["mean"] for each in (evaluation, evaluation["worst_task"], *results)]
    returns = [value for result in results for value in result.get("returns", ())]
    if not results or not all(is_number(number) and abs(number) < LARGEST for number in (*rates, *means, *returns)):
        raise ValueError("the evaluation needs tasks, and numbers for each")
    if not all(0 <= rate <= 1 for rate in rates):
        raise ValueError("a success rate is not between 0 and 1")


def find_runs(results_dir: Path) -> Iterator[Run | BrokenRunError]:
    """Every run `<name>/seed_<k>` below `results_dir`, by name and seed, or an error where it cannot be read."""
    folders = [path for path in results_dir.glob("*/seed_*") if path.is_dir()]
    for folder in sorted(folders, key=lambda folder: (folder.parent.name, _seed_of(folder))):
        try:
            yield read_run(folder)
        except BrokenRunError as error:
            yield error


def load_runs(results_dir: Path) -> tuple[dict[str, list[Run]], list[BrokenRunError]]:
    """Finished runs by name, with their metrics read and seeds in order, and an error for each folder of no use.

    Runs of one name are replicates. So each seed counts once, and all runs of a name must have the tasks of the first
    one: a copy of a run, or a run on other tasks, is an error too.
    """
    runs: dict[str, list[Run]] = {}
    errors: list[BrokenRunError] = []
    for found in find_runs(results_dir):
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
