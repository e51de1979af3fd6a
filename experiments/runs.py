"""Finished runs on disk: where their files are, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"
MODEL_FILE = "model.zip"
# Only while a run is in training:
CHECKPOINT_FILE = "checkpoint.zip"
PREVIOUS_FILE = "checkpoint.previous.zip"
LOCK_FILE = ".lock"


class BrokenRunError(ValueError):
    """A folder that looks like a run and can't be read as one; the message is one line."""


@dataclass(frozen=True)
class Run:
    """One training run: `<results-dir>/<name>/seed_<seed>/`."""

    folder: Path
    name: str  # method, with "_blind" for the blind variant
    seed: int
    config: dict[str, Any]
    evaluation: dict[str, Any]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks it was evaluated on."""
        return list(self.evaluation["tasks"])

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl; raises `BrokenRunError` if they can't be read."""
        path = self.folder / METRICS_FILE
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise BrokenRunError(f"{path}: {error}") from None
        if not all(isinstance(line, dict) and all(map(_is_number, line.values())) for line in lines):
            raise BrokenRunError(f"{path}: its lines are not objects of numbers")
        return lines

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Environment steps and values of one metric, at the lines that have it."""
        points = [(line["env_step"], line[key]) for line in self.metrics if key in line and "env_step" in line]
        return [step for step, _ in points], [value for _, value in points]


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
        numbers = [result[name] for result in results for name in ("mean", "success_rate")]
        numbers += [evaluation["mean"], evaluation["worst_task"]["mean"]]
        if not results or not all(map(_is_number, numbers)):
            raise ValueError("the evaluation needs tasks, and numbers")
        if not all(name.isprintable() for name in (run.name, *run.tasks)):
            raise ValueError("a name can't be printed")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BrokenRunError(f"{folder}: not a run of this project ({type(error).__name__}: {error})") from None
    return run


def find_runs(results_dir: Path) -> Iterator[Run | BrokenRunError]:
    """Every run below `results_dir`, by name and seed, and an error for each folder that can't be read."""
    folders = {path for name in (CONFIG_FILE, EVALUATION_FILE) for path in results_dir.glob(f"*/seed_*/{name}")}
    ordered = sorted({path.parent for path in folders}, key=lambda folder: (folder.parent.name, _seed_of(folder)))
    for folder in ordered:
        try:
            yield read_run(folder)
        except BrokenRunError as error:
            yield error


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _seed_of(folder: Path) -> tuple[int, str]:
    suffix = folder.name.removeprefix("seed_")
    return (int(suffix), "") if suffix.isdecimal() else (-1, suffix)
