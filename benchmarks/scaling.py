"""`python -m benchmarks.scaling`: time and memory of one balanced gradient against tasks T and parameters D.

A perceptron 16 -> width -> width / 2 -> 4, which all tasks share, takes a batch of B rows per task. The loss of a task
is the mean Huber loss of its rows, with given targets. An update here ends when the gradient is in `.grad`. The step of
the optimizer, which is the same for all cases, is left out. The cases are:

* "plain": `losses.sum().backward()`, PyTorch alone;
* "equal", "pcgrad", "gradnorm", "rgb": one pass for all tasks by `TaskMajorEngine`, and the balancer of that name;
* "pcgrad, chain": one pass by `ChainEngine`, which the agents use: without autograd, with the loss's derivative given;
* "pcgrad, low memory": `balancer.backward(losses, low_memory=True)`, for any graph, with one forward pass per task;
* "TorchJD PCGrad": `backward` and `jac_to_grad` in the fastest way that TorchJD has for these losses (all tasks in one
  forward pass, `parallel_chunk_size=1`, `optimize_gramian_computation=True`).

The figure for memory is the largest rise of a new process's resident memory during its first update, after the model
and the batch are in place and an update of a tiny model is done. For the figures of time, all cases of one table take
turns in one process; they are medians over rounds.

Each table states the floor of "plain": the time of its floating-point operations at the speed of a large product of
matrices, and the time of the bytes that it moves at the speed of a large copy. Both speeds are measured just before. A
method that balances at no cost would reach the same floor. An update that fits into the caches can be faster than the
floor of bytes.

At the end there are exponents p and q of time and memory ~ T^p D^q, by least squares over the logarithms of all tables.
In small networks most of the time is the overhead of calls, so that their exponents are lower than those of large ones.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

import torch
from rich.console import Console
from rich.table import Column, Table

from benchmarks.common import (
    NO_TORCHJD,
    TIDY,
    NoAnswerError,
    TurnsConfig,
    bytes_of_update,
    ceilings,
    flops_of_update,
    has_torchjd,
    in_own_process,
    interleaved,
    median_ratio,
    peak_memory,
    progress_bar,
    restart_peak_memory,
    write_json,
)
from benchmarks.growth import Exponents, fit_exponents
from benchmarks.perceptron import BALANCERS, CHAIN, LOW_MEMORY, PLAIN, TORCHJD, Problem, Shape
from experiments.program.command import run
from mtrl.limits import check_number

SMALLEST_MEBIBYTES = 1.0  # smaller values depend on the allocator, and are left out of the fit of the exponents
STARTING = 60.0  # seconds that a process may take to import torch on a busy machine


@dataclass(frozen=True)
class BenchmarkConfig(TurnsConfig):
    """Measure how the time and the memory of a balanced gradient grow with the number of tasks and the network's width.

    There is one table for each number of tasks and each width, and at the end a table of exponents. The defaults take a
    quarter of an hour. For a first look, use `--tasks 2 10 --widths 256 1024`.
    """

    tasks: tuple[int, ...] = (2, 3, 10, 50)
    """Numbers of tasks."""

    widths: tuple[int, ...] = (256, 1024, 4096)
    """Numbers of units in the first hidden layer. The second hidden layer has half as many."""

    batch_size: int = 64
    """Rows per task."""

    rounds: int = 3
    """Number of turns that every case has."""

    seconds: float = 3.0
    """Measured time per table. A round has at least one update of each case, however long that takes."""

    limit: float = 60.0
    """Longest time in seconds for one update of a case. A slower case is left out of its table."""

    max_gib: float = 8.0
    """Largest memory of a case in GiB, by an estimate before anything is allocated. Larger cases are left out."""

    def __post_init__(self) -> None:
        for name, least in (("tasks", 1), ("widths", 2)):
            values = getattr(self, name)
            if not values or min(values) < least:
                raise ValueError(f"{name} are {values}; give at least one, each at least {least}")
        check_number("batch_size", self.batch_size, least=1, whole=True)
        for name in ("limit", "max_gib"):
            check_number(name, getattr(self, name), above=0, most=math.inf)
        super().__post_init__()


@dataclass(frozen=True)
class First:
    """The measurements of a new process's first update."""

    mebibytes: float
    seconds: float


def first_update(case: str, shape: Shape) -> First:
    """Measure the first update in this process, which must be new. Model and batch do not count as memory."""
    torch.set_num_threads(1)
    Problem(Shape(shape.tasks, 8, 1)).update(case)()  # memory that libraries allocate once must not count
    problem = Problem(shape)
    restart_peak_memory()
    before, start = peak_memory(), time.perf_counter()
    problem.update(case)()
    seconds = time.perf_counter() - start
    assert all(parameter.grad is not None for parameter in problem.network.parameters())
    return First((peak_memory() - before) / 2**20, seconds)


def in_turns(names: Sequence[str], shape: Shape, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Measure for about `seconds`, and return the seconds per update of each case in each round.

    This runs in a new process, so that earlier tables do not influence its heap.
    """
    torch.set_num_threads(1)
    problem = Problem(shape)
    cases = {name: problem.update(name) for name in names}
    one_of_each = sum(values[0] for values in interleaved(cases, 1, 1).values())
    gc.freeze()  # a collection of the imported objects would take longer than many updates
    return interleaved(cases, rounds, max(1, round(seconds / rounds / one_of_each)))


@dataclass
class Figures:
    """The figures of one case in one table. A figure that was not measured is None, and the note says why."""

    mebibytes: float | None = None
    seconds: float | None = None
    relative_to_plain: float | None = None
    times_floor_of_flops: float | None = None
    times_floor_of_bytes: float | None = None
    note: str = ""


@dataclass
class Measurement:
    """The figures of one table."""

    tasks: int
    width: int
    batch_size: int
    parameters: int
    flops: int
    bytes: int
    gflops: float
    gbytes_per_second: float
    cases: dict[str, Figures] = field(default_factory=dict)

    @property
    def seconds_for_flops(self) -> float:
        """The floor by the floating-point operations."""
        return self.flops / (1e9 * self.gflops)

    @property
    def seconds_for_bytes(self) -> float:
        """The floor by the bytes that are moved."""
        return self.bytes / (1e9 * self.gbytes_per_second)

    def table(self) -> Table:
        """The table for the terminal."""
        title = f"T = {self.tasks}, width {self.width}: D = {self.parameters:,}; B = {self.batch_size}"
        flops, moved = 1e3 * self.seconds_for_flops, 1e3 * self.seconds_for_bytes
        caption = [
            f"flop floor: {self.flops / 1e9:.3g} GFLOP at {self.gflops:.0f} GFLOP/s: {flops:.3g} ms",
            f"byte floor: {self.bytes / 1e9:.3g} GB at {self.gbytes_per_second:.1f} GB/s: {moved:.3g} ms",
        ]
        notes = [f"{case}: {found.note}" for case, found in self.cases.items() if found.note]
        columns = ("ms", "/ plain", "/ flop floor", "/ byte floor", "extra MiB")
        update = Column("update", no_wrap=True)
        table = Table(update, *columns, title=title, caption="\n".join([*caption, *notes]))
        for case, found in self.cases.items():
            row = (
                _shown(found.seconds, 1e3, ".3f"),
                _shown(found.relative_to_plain),
                _shown(found.times_floor_of_flops),
                _shown(found.times_floor_of_bytes),
                _shown(found.mebibytes, spec=".1f"),
            )
            table.add_row(case, *row)
        return table


def _shown(value: float | None, factor: float = 1, spec: str = ".2f") -> str:
    return "-" if value is None else f"{factor * value:{spec}}"


def measure(shape: Shape, cases: Sequence[str], config: BenchmarkConfig) -> Measurement:
    """Measure all cases of one table."""
    best = ceilings()
    work = (flops_of_update(shape.sizes, shape.rows, None), bytes_of_update(shape.sizes, shape.rows))
    size = (shape.tasks, shape.width, shape.batch_size, shape.parameters)
    measurement = Measurement(*size, *work, best.gflops, best.gbytes_per_second)
    firsts: dict[str, First] = {}
    with progress_bar() as progress:
        for case in progress.track(cases, description=f"T = {shape.tasks}, width {shape.width}"):
            figures = measurement.cases[case] = Figures()
            if (needed := shape.gibibytes(case)) > config.max_gib:
                figures.note = f"left out: it would hold about {needed:.1f} GiB"
                continue
            try:
                limit = config.limit + STARTING
                first = in_own_process(first_update, case, shape, limit=limit, environment=TIDY)
            except NoAnswerError as error:
                figures.note = f"left out: {error}"
                continue
            figures.mebibytes = first.mebibytes
            if first.seconds > config.limit:
                figures.note = f"not timed: one update took {first.seconds:.0f} s"
            else:
                firsts[case] = first
    _add_times(measurement, shape, firsts, config)
    return measurement


def _add_times(measurement: Measurement, shape: Shape, firsts: dict[str, First], config: BenchmarkConfig) -> None:
    """Time the cases whose first update was fast enough, in turns."""
    limit = STARTING + (config.rounds + 3) * (config.seconds + len(firsts) * config.limit)
    try:
        seconds = in_own_process(in_turns, list(firsts), shape, config.rounds, config.seconds, limit=limit)
    except NoAnswerError as error:
        for case in firsts:
            measurement.cases[case].note = f"not timed: {error}"
        return
    for case, values in seconds.items():
        figures = measurement.cases[case]
        figures.seconds = median(values)
        figures.times_floor_of_flops = figures.seconds / measurement.seconds_for_flops
        figures.times_floor_of_bytes = figures.seconds / measurement.seconds_for_bytes
        if PLAIN in seconds:
            figures.relative_to_plain = median_ratio(values, seconds[PLAIN])


def exponents(measurements: Sequence[Measurement], cases: Sequence[str]) -> dict[str, dict[str, Exponents]]:
    """The exponents of time and memory for each case, over all tables that have the case."""
    fits: dict[str, dict[str, Exponents]] = {}
    for case in cases:
        fits[case] = {}
        for quantity, least in (("seconds", 0.0), ("mebibytes", SMALLEST_MEBIBYTES)):
            points = [
                (measurement.tasks, measurement.parameters, value)
                for measurement in measurements
                if (value := getattr(measurement.cases[case], quantity)) is not None and value > least
            ]
            columns = zip(*points, strict=True) if points else ((), (), ())
            fits[case][quantity] = fit_exponents(*columns)
    return fits


def benchmark(config: BenchmarkConfig) -> None:
    """Run the benchmark and print its tables."""
    torch.set_num_threads(1)
    console = Console()
    cases = [PLAIN, *BALANCERS, CHAIN, LOW_MEMORY, TORCHJD]
    if not has_torchjd():
        console.print(NO_TORCHJD)
        cases.remove(TORCHJD)
    measurements = []
    for width in config.widths:
        for tasks in config.tasks:
            measurement = measure(Shape(tasks, width, config.batch_size), cases, config)
            measurements.append(measurement)
            console.print(measurement.table())
            fits = exponents(measurements, cases)
            if config.json is not None:  # after each table, so that an interrupted run keeps its figures
                tables = [asdict(found) for found in measurements]
                powers = {case: {name: asdict(fit) for name, fit in found.items()} for case, found in fits.items()}
                write_json(config.json, config, {"tables": tables, "exponents": powers})
    table = Table("update", "time ~ T^", "D^", "memory ~ T^", "D^", title="growth, over all tables")
    for case, found in fits.items():
        values = [getattr(found[name], of) for name in ("seconds", "mebibytes") for of in ("tasks", "parameters")]
        table.add_row(case, *(_shown(value) for value in values))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.scaling")


if __name__ == "__main__":
    sys.exit(main())
