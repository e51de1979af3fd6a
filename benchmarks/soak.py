"""`python -m benchmarks.soak`: does the memory of a long training run stay constant?

The benchmark trains with `experiments.training.runner.train`, as `python -m experiments.gradnorm.train` does:
`MultiTaskDQN` on the three tasks, with metrics, evaluations and checkpoints. The network and the replay are tiny, so
that many steps take little time and the replay is full early. A thread records every `--interval` seconds

* the resident size of the process, page by page (`Rss` in Linux's `/proc/self/smaps_rollup`; the sum in
  `/proc/self/statm` may lag behind);
* the number of memory blocks that the interpreter has allocated (`sys.getallocatedblocks`), about one per live object;
* the number of open files.

The number of environment steps at that time comes from the run's own metrics. Growth is the median of the last tenth
of the samples relative to the median of the first tenth. Only samples after the replay is full count.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.common import check_json, write_json
from experiments.analysis.runs import read_run
from experiments.gradnorm.config import PRESETS
from experiments.program.command import run
from experiments.program.flags import UsageError
from experiments.program.run_folder import MODEL_FILE
from experiments.program.stopping import StoppedError
from experiments.training.algorithms import DQNTrainConfig
from experiments.training.runner import train
from mtrl.files import replacing
from mtrl.limits import check_number

Array = NDArray[np.float64]

PAGES, FILES = Path("/proc/self/smaps_rollup"), Path("/proc/self/fd")
FEWEST_SAMPLES = 20
"""Least number of samples after the replay is full: two for each tenth."""

ASKED = 0.01
"""The largest growth that the project accepts."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Train a tiny network for millions of steps, and see whether the process grows after its replay is full.

    The output is the resident size, Python's memory blocks, the open files and the speed at both ends of the run, and a
    plot of the resident size. 5,000,000 steps take 12 to 20 minutes on one core of a busy machine. For a quick look,
    use `--total-steps 100000 --interval 0.1`.
    """

    total_steps: int = 5_000_000
    """Environment steps over all tasks."""

    buffer_size: int = 30_000
    """Transitions that the replay keeps, over all tasks."""

    interval: float = 1.0
    """Seconds between samples."""

    seed: int = 0
    """Seed of the run."""

    results_dir: Path = Path("results/runs/soak")
    """The run's folder is `<results-dir>/gradnorm/seed_<seed>/`. An unfinished run is never continued, because its
    earlier samples would be missing."""

    existing: Literal["restart", "replace"] = "restart"
    """What to do with the run in that place. `restart` throws an unfinished run away and refuses a finished one;
    `replace` throws either away."""

    plot: Path = Path("results/analysis/soak.png")
    """Draw resident size against environment steps in this file."""

    json: Path | None = None
    """Write the figures and all samples to this file as well."""

    def __post_init__(self) -> None:
        check_number("interval", self.interval, above=0)
        tasks, batch = len(self.training.tasks), self.training.batch_size  # this checks the settings of the run
        if self.buffer_size < tasks * batch:
            least = f"{tasks * batch}: {batch} for each of {tasks} tasks"
            raise ValueError(f"buffer_size is {self.buffer_size}; it must be at least {least}")
        if self.total_steps <= self.full_at:
            raise ValueError(f"total_steps is {self.total_steps}; the replay is full only after {self.full_at}")
        check_json(self.plot)
        check_json(self.json)

    @property
    def training(self) -> DQNTrainConfig:
        """The settings of the run."""
        return replace(
            PRESETS["default"],
            total_steps=self.total_steps,
            buffer_size=self.buffer_size,
            seed=self.seed,
            results_dir=self.results_dir,
            existing=self.existing,
            hidden_dims=(32,),
            batch_size=16,
            train_freq=4,
            gradient_steps=1,
            eval_interval=max(1, self.total_steps // 20),
            eval_episodes=2,
            checkpoint_interval=10.0,
        )

    @property
    def full_at(self) -> int:
        """The number of environment steps after which every task's part of the replay is certainly full."""
        training = self.training
        tasks, columns = len(training.tasks), training.envs_per_task
        assert isinstance(columns, int)
        rows = -(-(self.buffer_size // tasks) // columns)  # vector steps, rounded up
        return (rows + training.n_step - 1) * tasks * columns  # a transition is complete n_step - 1 steps later


@dataclass(frozen=True)
class Sample:
    """The memory and the open files of the process at one moment."""

    time: float
    """Seconds since the epoch."""

    resident: int
    """Resident size in bytes."""

    blocks: int
    """Number of memory blocks of the interpreter."""

    files: int
    """Number of open files."""

    @classmethod
    def now(cls) -> Sample:
        """Take a sample of this process."""
        (kibibytes,) = (line.split()[1] for line in PAGES.read_text().splitlines() if line.startswith("Rss:"))
        return cls(time.time(), 1024 * int(kibibytes), sys.getallocatedblocks(), len(os.listdir(FILES)))


@contextmanager
def sampling(interval: float) -> Iterator[list[Sample]]:
    """In this context, a sample is appended to the list every `interval` seconds."""
    samples: list[Sample] = []
    enough = threading.Event()

    def watch() -> None:
        samples.append(Sample.now())
        while not enough.wait(min(interval, threading.TIMEOUT_MAX)):
            samples.append(Sample.now())

    thread = threading.Thread(target=watch, name="soak", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        enough.set()
        thread.join()


@dataclass(frozen=True)
class Trace:
    """The N samples of a run against its environment steps. All arrays are (N,)."""

    steps: Array
    seconds: Array
    mebibytes: Array
    blocks: Array
    files: Array

    @classmethod
    def of(cls, samples: Sequence[Sample], folder: Path) -> Trace:
        """Select the samples that were taken while the run in `folder` trained.

        The run's metrics have the steps and the seconds since its start. Their last line was written at the end of
        training, right before the model.
        """
        steps, speeds = (np.asarray(values) for values in read_run(folder).curve("time/steps_per_s"))
        clock = np.append(0.0, steps / speeds)
        start = (folder / MODEL_FILE).stat().st_mtime - clock[-1]
        seconds = np.array([sample.time for sample in samples]) - start
        during = (seconds >= 0) & (seconds <= clock[-1])
        return cls(
            np.interp(seconds[during], clock, np.append(0.0, steps)),
            seconds[during],
            np.array([sample.resident / 2**20 for sample in samples])[during],
            np.array([float(sample.blocks) for sample in samples])[during],
            np.array([float(sample.files) for sample in samples])[during],
        )

    def after(self, step: float) -> Trace:
        """The part from this step on."""
        return Trace(*(getattr(self, field.name)[self.steps >= step] for field in fields(self)))


@dataclass(frozen=True)
class Ends:
    """A quantity over the first and over the last tenth of a trace."""

    first: float
    last: float

    @classmethod
    def medians(cls, values: Array) -> Ends:
        """The medians of the samples in each tenth, which one outlier does not change."""
        tenth = max(1, len(values) // 10)
        return cls(float(np.median(values[:tenth])), float(np.median(values[-tenth:])))

    @classmethod
    def speeds(cls, trace: Trace) -> Ends:
        """Environment steps per second in each tenth. A tenth has at least two samples here."""
        tenth = max(2, len(trace.steps) // 10)
        steps, seconds = trace.steps, trace.seconds
        first, last = ((part[tenth - 1] - part[0], part[-1] - part[-tenth]) for part in (steps, seconds))
        return cls(float(first[0] / last[0]), float(first[1] / last[1]))

    @property
    def growth(self) -> float:
        """The growth from the first to the last value, as a share of the first."""
        return self.last / self.first - 1


def summary(trace: Trace) -> dict[str, Ends]:
    """The quantities that the command prints, for a trace that begins when the replay is full."""
    return {
        "resident size, MiB": Ends.medians(trace.mebibytes),
        "blocks of Python": Ends.medians(trace.blocks),
        "open files": Ends.medians(trace.files),
        "steps/s": Ends.speeds(trace),
    }


def draw(trace: Trace, full_at: int, path: Path) -> None:
    """Plot the resident size against environment steps: the whole run, and the change after the replay is full."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    whole, change = figure.subplots(1, 2)
    full = trace.after(full_at)
    ends = Ends.medians(full.mebibytes)

    whole.plot(trace.steps, trace.mebibytes, color="#332288", linewidth=1.2)
    whole.set_ylim(0, 1.15 * trace.mebibytes.max())
    whole.set_ylabel("resident size, MiB")
    whole.set_title("The whole run")

    change.plot(full.steps, 100 * (full.mebibytes / ends.first - 1), color="#332288", linewidth=1.2)
    change.axhline(100 * ASKED, color="0.4", linestyle=":", label=f"{ASKED:.0%}, what is allowed")
    change.axhline(100 * ends.growth, color="#CC6677", linewidth=1, label=f"last tenth: {100 * ends.growth:+.2f} %")
    change.set_ylabel("resident size relative to the first tenth, %")
    change.set_title("With the replay full")

    for axes in (whole, change):
        axes.axvline(full_at, color="#117733", linestyle="--", linewidth=1, label=f"replay full, {full_at:,} steps")
        axes.set_xlim(0, trace.steps[-1])
        axes.set_xlabel("environment steps (all tasks)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1M
        axes.spines[["top", "right"]].set_visible(False)
    change.legend(fontsize="small", loc="lower right")
    _leave_room(change)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _leave_room(axes: Axes) -> None:
    """Leave room for the legend below the line."""
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.4 * (high - low), high)


def benchmark(config: BenchmarkConfig) -> int:
    """Run the benchmark, print its table, and return the exit status.

    Raises:
        UsageError: this is not Linux, the folder holds a finished run, or there are too few samples.
    """
    if not PAGES.exists():
        raise UsageError(f"there is no {PAGES}: Linux 4.14 or newer is needed")
    training = config.training
    try:
        with sampling(config.interval) as samples:
            train(training)
    except StoppedError as stop:
        reason, _, _ = str(stop).partition("; ")  # the rest explains how to continue, which a soak cannot do
        print(f"benchmarks.soak: {reason}", file=sys.stderr)
        return stop.status
    trace = Trace.of(samples, training.run_dir)
    full = trace.after(config.full_at)
    count = len(full.steps)
    if count < FEWEST_SAMPLES:
        raise UsageError(f"only {count} samples with the replay full; give a lower --interval or more --total-steps")
    ends = summary(full)

    table = Table("", "first tenth", "last tenth", "growth", title=f"{count:,} samples with the replay full")
    for name, of_quantity in ends.items():
        spec = ",.2f" if "MiB" in name else ",.0f"
        table.add_row(name, f"{of_quantity.first:{spec}}", f"{of_quantity.last:{spec}}", f"{of_quantity.growth:+.2%}")
    console = Console()
    console.print(table)
    growth = ends["resident size, MiB"].growth
    console.print(
        f"from {config.full_at:,} to {trace.steps[-1]:,.0f} steps the resident size grew by {growth:.2%} "
        f"({ASKED:.0%} is allowed)"
    )
    draw(trace, config.full_at, config.plot)
    console.print(f"plot in {config.plot}", soft_wrap=True)
    if config.json is not None:
        content = {
            "full_at": config.full_at,
            "growth": growth,
            "ends": {name: {"first": one.first, "last": one.last, "growth": one.growth} for name, one in ends.items()},
            "samples": {field.name: getattr(trace, field.name).tolist() for field in fields(trace)},
        }
        write_json(config.json, config, content)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.soak")


if __name__ == "__main__":
    sys.exit(main())
