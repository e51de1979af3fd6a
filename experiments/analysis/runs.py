"""Finished runs on disk: where their files are, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from experiments.program.run_folder import CONFIG_FILE, EVALUATION_FILE, METRICS_FILE

Array = NDArray[np.float64]

STEP = "env_step"  # the axis of every curve: environment steps, over all tasks
SECONDS = "time/time_elapsed"  # since training began, without the time that an interrupted run lay still
BLIND = "_blind"  # ends the name of a run of the blind variant
BASELINE = "shared_dqn"  # equal weights, what other methods are compared with
REFERENCE = "independent_dqn"  # no sharing, the 1 of normalised scores
LARGEST = 1e15  # numbers beyond it are none that a run has


class BrokenRunError(ValueError):
    """A folder that looks like a run and can't be read as one; the message is one line."""


@dataclass(frozen=True, eq=False)  # the same one or another: contents are large
class Run:
    """One training run: `<results-dir>/<name>/seed_<seed>/`."""

    folder: Path
    name: str  # method, with "_blind" for the blind variant
    seed: int
    config: dict[str, Any] = field(repr=False)
    evaluation: dict[str, Any] = field(repr=False)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks it was evaluated on."""
        return list(self.evaluation["tasks"])

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings, as config.json has them."""
        settings: dict[str, Any] = self.config["settings"]
        return settings

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, read anew each time; raises `BrokenRunError` if they can't be read."""
        path = self.folder / METRICS_FILE
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise BrokenRunError(f"{path}: {error}") from None
        if not all(isinstance(line, dict) and all(map(_is_number, line.values())) for line in lines):
            raise BrokenRunError(f"{path}: its lines are not objects of numbers")
        return lines

    @cached_property
    def columns(self) -> dict[str, tuple[NDArray[np.int64], Array]]:
        """By key of metrics.jsonl, the numbers of the lines that have it, and its values there.

        A tenth of the memory of the lines themselves. Values that are NaN, infinite or above 1e15 are left out.

        Raises:
            BrokenRunError: the file can't be read, or its environment steps go backwards.
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
        """Abscissae and values of one metric, at the lines that have both; (P,) each, P = 0 if there are none."""
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
    contents = []
    for name in (CONFIG_FILE, EVALUATION_FILE):
        path = folder / name
        try:
            contents.append(json.loads(path.read_text()))
        except FileNotFoundError:
            raise BrokenRunError(f"{folder}: not finished ({name} is missing)") from None
        except (OSError, ValueError, RecursionError) as error:
            raise BrokenRunError(f"{path}: {error}") from None
    config, evaluation = contents
    try:
        seed = int(config["settings"]["seed"])
        run = Run(folder, str(config["run"]), seed, config, evaluation)
        results = evaluation["tasks"].values()
        rates = [result["success_rate"] for result in results]
        numbers = [
            *rates,
            *(result["mean"] for result in results),
            evaluation["mean"],
            evaluation["worst_task"]["mean"],
        ]
        numbers += [value for result in results for value in result.get("returns", ())]
        if not results or not all(_is_number(number) and abs(number) < LARGEST for number in numbers):
            raise ValueError("the evaluation needs tasks, and numbers for each")
        if not all(0 <= rate <= 1 for rate in rates):
            raise ValueError("a success rate is not between 0 and 1")
        if not run.name or not all(name.isprintable() for name in (run.name, *run.tasks)):
            raise ValueError("a name can't be printed")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BrokenRunError(f"{folder}: not a run of this project ({type(error).__name__}: {error})") from None
    return run


def find_runs(results_dir: Path) -> Iterator[Run | BrokenRunError]:
    """Every run `<name>/seed_<k>` below `results_dir`, by name and seed, and an error for each that can't be read."""
    folders = [path for path in results_dir.glob("*/seed_*") if path.is_dir()]
    for folder in sorted(folders, key=lambda folder: (folder.parent.name, _seed_of(folder))):
        try:
            yield read_run(folder)
        except BrokenRunError as error:
            yield error


def load_runs(results_dir: Path) -> tuple[dict[str, list[Run]], list[BrokenRunError]]:
    """Finished runs by name, their metrics read, seeds in order; and what is wrong with the folders that can't be used.

    Runs of one name are replicates. So each seed counts once, and all must have the tasks of the first: a copy of a
    run, or one on other tasks, is an error too.
    """
    runs: dict[str, list[Run]] = {}
    errors: list[BrokenRunError] = []
    for found in find_runs(results_dir):
        try:
            if isinstance(found, BrokenRunError):
                raise found
            _ = found.columns  # a run whose curves can't be read is no use either
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


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _seed_of(folder: Path) -> tuple[int, str]:
    suffix = folder.name.removeprefix("seed_")
    return (int(suffix), "") if suffix.isdecimal() and len(suffix) < 20 else (-1, suffix)
