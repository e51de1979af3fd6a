"""Reads from the files of a run how far the run is."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from experiments.program.run_folder import EVALUATION_FILE, METRICS_FILE
from mtrl.files import parse_numbers

TAIL_BYTES = 1 << 15  # several lines of metrics.jsonl


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        steps: environment steps over all tasks.
        steps_per_s: environment steps per second over the whole run; None if it is not known.
        mean_return: the mean return over the tasks. It is taken over the last training episodes, or over the final
            greedy episodes if the run is finished; None before the first episode has ended.
    """

    steps: int = 0
    steps_per_s: float | None = None
    mean_return: float | None = None


def read_progress(folder: Path) -> Progress:
    """The progress of the run in `folder`. Files that cannot be read count as not there yet."""
    steps, steps_per_s, mean_return = 0, None, None
    for line in reversed(_tail(folder / METRICS_FILE)):
        steps = steps or int(line.get("env_step", 0))
        steps_per_s = steps_per_s or line.get("time/steps_per_s")
        returns = [value for key, value in line.items() if key.startswith("train/") and key.endswith("/return")]
        if mean_return is None and returns:
            mean_return = fmean(returns)
    with suppress(OSError, ValueError, LookupError, TypeError):  # the run is not finished
        mean_return = float(json.loads((folder / EVALUATION_FILE).read_text())["mean"])
    return Progress(steps, steps_per_s, mean_return)


def _tail(path: Path) -> list[dict[str, float]]:
    """The last whole lines of a JSONL file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return []
    if size > TAIL_BYTES:
        del lines[0]  # the beginning of the first line is cut off
    whole = []
    for line in lines:
        try:
            whole.append(parse_numbers(line))
        except ValueError:  # the last line may be half written
            continue
    return whole


def duration(seconds: float) -> str:
    """A duration in words, rounded to minutes: `2 h 5 min`."""
    minutes = round(seconds / 60)
    if not minutes:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
