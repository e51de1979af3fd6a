"""Reads from the files of a run how far the run is."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from experiments.program.run_files import METRICS_FILE, STEP, BrokenRunError, read_evaluation, read_tail

SPEEDS = (1e-3, 1e9)
"""The lowest and the highest number of environment steps per second that any run makes."""


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
    for line in reversed(read_tail(folder / METRICS_FILE)):
        steps = steps or int(line.get(STEP, 0))
        speed = line.get("time/steps_per_s", 0)
        if steps_per_s is None and SPEEDS[0] <= speed <= SPEEDS[1]:
            steps_per_s = speed
        returns = [value for key, value in line.items() if key.startswith("train/") and key.endswith("/return")]
        if mean_return is None and returns:
            mean_return = fmean(returns)
    with suppress(BrokenRunError):  # the run is not finished
        mean_return = read_evaluation(folder)["mean"]
    return Progress(steps, steps_per_s, mean_return)


def duration(seconds: float) -> str:
    """A duration in words, rounded to minutes: `2 h 5 min`."""
    minutes = round(seconds / 60)
    if not minutes:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
