"""Estimates how long a sweep will take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from experiments.program.run_files import EVALUATION_FILE
from experiments.sweep.grid import PlannedRun
from experiments.sweep.progress import duration, read_progress
from experiments.training.config import TrainConfig, run_name
from experiments.training.make_agent import make_agent

RANDOM_STEPS = 600
MEASURED_STEPS = 1_500


def describe(runs: Sequence[PlannedRun], slots: int) -> Iterator[str]:
    """Lines that list the runs, say how far they are, and estimate the time that they will take.

    Args:
        runs: the runs of the sweep.
        slots: how many runs go on side by side.
    """
    seconds: list[float] = []
    steps = 0
    speeds: dict[str, tuple[float, str]] = {}
    width = max(len(run.name) for run in runs)
    for run in runs:
        if run.is_finished:
            yield f"{run.name:<{width}}  finished, will be skipped"
            continue
        total = run.config.total_steps
        done = min(read_progress(run.folder).steps, total) if run.is_begun else 0
        yield f"{run.name:<{width}}  " + (
            f"to be continued, at {done:,} of {total:,} steps" if done else f"{total:,} steps"
        )
        method = run.config.run_method
        if method not in speeds:
            speeds[method] = _speed(run)
        steps += total - done
        seconds.append((total - done) / speeds[method][0])
    yield ""
    yield f"{len(runs)} runs, {len(runs) - len(seconds)} of them finished; {steps:,} environment steps to go"
    if not seconds:
        return
    for method, (speed, source) in speeds.items():
        yield f"{method}: {speed:,.0f} steps/s, {source}"
    # No schedule is shorter than its longest run.
    left = max(sum(seconds) / slots, *seconds)
    yield f"about {duration(left)} with {min(slots, len(seconds))} at once"


def _speed(run: PlannedRun) -> tuple[float, str]:
    """The environment steps per second of the runs of a method, and where the figure comes from."""
    results = run.config.results_dir
    folders = [file.parent for file in _finished(run.config)]
    known = [speed for folder in folders if (speed := read_progress(folder).steps_per_s)]
    if known:
        return median(known), f"the median of its {len(known)} finished runs in '{results}'"
    return measure_speed(run.config), "measured just now, on one core of this machine and without evaluations"


def _finished(config: TrainConfig) -> list[Path]:
    names = [run_name(config.run_method, variant, config.label) for variant in ("aware", "blind")]
    return [file for name in names for file in config.results_dir.glob(f"{name}/seed_*/{EVALUATION_FILE}")]


def measure_speed(config: TrainConfig) -> float:
    """Environment steps per second of a run, measured in a few seconds, with updates and without evaluations."""
    with make_agent(config, learning_starts=RANDOM_STEPS) as (agent, _):
        agent.learn(2 * RANDOM_STEPS)  # work that is done only once, such as imports, ends with these steps
        begun = time.monotonic()
        agent.learn(MEASURED_STEPS, reset_num_timesteps=False)
        return MEASURED_STEPS / (time.monotonic() - begun)
