"""`python -m benchmarks.scaling`: time and memory of one balanced gradient against tasks T and parameters D.

A perceptron 16 -> width -> width / 2 -> 4, shared by all tasks, takes a batch of B rows per task; a task's loss is its
rows' mean Huber loss to given targets. An update here ends when the gradient is where the optimizer finds it; the
optimizer, alike for all, is left out. Cases:

* "plain": `losses.sum().backward()`, what one writes without this project;
* "equal", "pcgrad", "gradnorm", "rgb": one pass for all tasks by `TaskMajorEngine`, and that balancer;
* "pcgrad, chain": the same by `ChainEngine`, which the agents use: no autograd, the loss's slope written out;
* "pcgrad, low memory": `balancer.backward(losses, low_memory=True)`, for any graph, with one forward pass per task;
* "TorchJD PCGrad": `backward` and `jac_to_grad` in the fastest way that TorchJD has for these losses (all tasks in one
  forward pass, `parallel_chunk_size=1`, `optimize_gramian_computation=True`).

Memory: by how much the resident memory of a fresh process rises at most during its first update, model and batch being
in place and an update of a tiny model done. Time: all cases of one table take turns in one process; figures are medians
over rounds.

The floor of "plain" is stated with each table: its floating-point operations at the speed of a large product of
matrices, and the bytes that it moves at the speed of a large copy, both measured just before. A method that balances
without any cost would reach it, too. An update that fits into the caches can fall below the floor of bytes.

At the end, exponents p and q of time and memory ~ T^p D^q, by least squares over the logarithms of all tables. Small
networks are ruled by the overhead of calls, so that exponents over them are lower than over large ones.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from benchmarks.common import (
    NO_TORCHJD,
    NoAnswerError,
    bytes_of_update,
    ceilings,
    check_json,
    flops_of_update,
    has_torchjd,
    in_own_process,
    interleaved,
    parameters_of,
    peak_memory,
    progress_bar,
    restart_peak_memory,
    write_json,
)
from experiments.program.command import run
from mtrl.balancers import make_balancer
from mtrl.gradients import ChainEngine, TaskMajorEngine

INPUTS, OUTPUTS = 16, 4
PLAIN, CHAIN, LOW_MEMORY, TORCHJD = "plain", "pcgrad, chain", "pcgrad, low memory", "TorchJD PCGrad"
BALANCERS = ("equal", "pcgrad", "gradnorm", "rgb")
# glibc gives large blocks back when they are freed, so that holes in its heap do not count as memory; that costs time.
TIDY = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
SMALLEST_MEBIBYTES = 1.0  # less is the allocator's and no part of a law
STARTING = 60.0  # seconds that a process may take to import torch on a busy machine


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure time and memory of balanced gradients over numbers of tasks and widths of the network, and how they grow.

    One table for each number of tasks and width; then the exponents of growth. All defaults together take a quarter of
    an hour; for a first look give `--tasks 2 10 --widths 256 1024`.
    """

    tasks: tuple[int, ...] = (2, 3, 10, 50)
    """Numbers of tasks."""

    widths: tuple[int, ...] = (256, 1024, 4096)
    """Units in the first hidden layer; the second has half as many."""

    batch_size: int = 64
    """Rows per task."""

    rounds: int = 3
    """Times that every case has its turn."""

    seconds: float = 3.0
    """Measured time per table; a round has at least one update of each case, however long that takes."""

    limit: float = 60.0
    """Longest time in seconds for one update of a case; a case that needs more is left out of its table."""

    max_gib: float = 8.0
    """Cases that would hold more memory than this are left out; an estimate, made before anything is allocated."""

    json: Path | None = None
    """Write the figures to this file as well."""

    def __post_init__(self) -> None:
        for name, least in (("tasks", 1), ("widths", 2)):
            values = getattr(self, name)
            if not values or min(values) < least:
                raise ValueError(f"{name} are {values}; give at least one, each at least {least}")
        for name in ("batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("seconds", "limit", "max_gib"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be above 0")
        check_json(self.json)


@dataclass(frozen=True)
class Shape:
    """What one table is about."""

    tasks: int
    width: int
    batch_size: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the layers, inputs and outputs included."""
        return (INPUTS, self.width, self.width // 2, OUTPUTS)

    @property
    def parameters(self) -> int:
        """D."""
        return parameters_of(self.sizes)

    @property
    def rows(self) -> int:
        """Of the batch, all tasks together."""
        return self.tasks * self.batch_size

    def gibibytes(self, case: str) -> float:
        """An estimate of what a process holds at most: parameters, gradients, rows of the Jacobian, activations."""
        # In low-memory mode it is T rows of the largest layer, which here is nearly all of D.
        rows_held = {PLAIN: 0, TORCHJD: 2}.get(case, 1) * self.tasks
        activations = 4 * self.rows * sum(self.sizes)  # values and gradients, before and after the ReLU
        return 4 * ((rows_held + 3) * self.parameters + activations) / 2**30


class Problem:
    """A network and one batch, with the ways to the gradient of its losses."""

    def __init__(self, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        first, second, third, last = shape.sizes
        self.tasks = shape.tasks
        self.network = nn.Sequential(
            nn.Linear(first, second), nn.ReLU(), nn.Linear(second, third), nn.ReLU(), nn.Linear(third, last)
        )
        self.x = torch.randn(shape.rows, INPUTS, generator=generator)
        self.targets = torch.randn(shape.rows, OUTPUTS, generator=generator)
        self._engine: TaskMajorEngine | None = None

    def losses(self) -> Tensor:
        """All tasks in one forward pass, (T,)."""
        per_row = F.smooth_l1_loss(self.network(self.x), self.targets, reduction="none").view(self.tasks, -1)
        return per_row.mean(1)

    def losses_and_slope(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (T,) of the network's output (T * B, 4), and their derivative with respect to it."""
        error = values - self.targets
        slope = error.clamp(-1, 1)
        losses = (slope * (error - 0.5 * slope)).view(self.tasks, -1)
        return losses.mean(1), slope / losses.shape[1]

    def losses_one_by_one(self) -> list[Tensor]:
        """One forward pass per task: with T backward passes, none then goes through another task's rows."""
        batches = zip(self.x.chunk(self.tasks), self.targets.chunk(self.tasks), strict=True)
        return [F.smooth_l1_loss(self.network(x), targets) for x, targets in batches]

    def update(self, case: str) -> Callable[[], None]:
        """What fills the gradient in that way."""
        parameters = list(self.network.parameters())
        if case == PLAIN:

            def update() -> None:
                self.network.zero_grad()
                self.losses().sum().backward()  # type: ignore[no-untyped-call]

        elif case == TORCHJD:
            from torchjd.aggregation import PCGrad  # noqa: PLC0415 - optional
            from torchjd.autojac import backward, jac_to_grad  # noqa: PLC0415

            aggregator = PCGrad()

            def update() -> None:
                self.network.zero_grad()
                backward(self.losses(), inputs=parameters, parallel_chunk_size=1)
                jac_to_grad(parameters, aggregator, optimize_gramian_computation=True)

        elif case == CHAIN:
            balancer, chain = make_balancer("pcgrad", self.tasks), ChainEngine(self.network, self.tasks)

            @torch.no_grad()
            def update() -> None:
                self.network.zero_grad()
                losses, slope = self.losses_and_slope(chain.forward(self.x))
                gradients = chain.backward(slope, losses)
                chain.layout.accumulate_grad(balancer(gradients).update(gradients))

        elif case == LOW_MEMORY:
            balancer = make_balancer("pcgrad", self.tasks)

            def update() -> None:
                self.network.zero_grad()
                balancer.backward(self.losses_one_by_one(), parameters, low_memory=True)

        else:
            balancer = make_balancer(case, self.tasks)
            if self._engine is None:
                self._engine = TaskMajorEngine(self.network, self.tasks, self.network[2])
            engine = self._engine

            def update() -> None:
                self.network.zero_grad()
                with engine.record():
                    losses = self.losses()
                gradients = engine.backward(losses)
                with torch.no_grad():
                    engine.layout.accumulate_grad(balancer(gradients).update(gradients))

        return update


@dataclass(frozen=True)
class First:
    """What a fresh process measured of its first update."""

    mebibytes: float
    seconds: float


def first_update(case: str, shape: Shape) -> First:
    """Memory that the first update needs besides model and batch; called in a process of its own."""
    torch.set_num_threads(1)
    Problem(Shape(shape.tasks, 8, 1)).update(case)()  # what libraries set up once does not count
    problem = Problem(shape)
    restart_peak_memory()
    before, start = peak_memory(), time.perf_counter()
    problem.update(case)()
    seconds = time.perf_counter() - start
    assert all(parameter.grad is not None for parameter in problem.network.parameters())
    return First((peak_memory() - before) / 2**20, seconds)


def in_turns(names: Sequence[str], shape: Shape, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per update of each case, one figure per round, from about `seconds` of measurement in all.

    Called in a process of its own, so that no earlier table has shaped its heap.
    """
    torch.set_num_threads(1)
    problem = Problem(shape)
    cases = {name: problem.update(name) for name in names}
    one_of_each = sum(values[0] for values in interleaved(cases, 1, 1).values())
    gc.freeze()  # collecting what the imports left takes longer than many updates, and would fall on any of them
    return interleaved(cases, rounds, max(1, round(seconds / rounds / one_of_each)))


@dataclass
class Figures:
    """What was found about one case of one table; None and a note where something was not."""

    mebibytes: float | None = None
    seconds: float | None = None
    relative_to_plain: float | None = None
    times_floor_of_flops: float | None = None
    times_floor_of_bytes: float | None = None
    note: str = ""


@dataclass
class Measurement:
    """One table."""

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
        """The floor that arithmetic sets."""
        return self.flops / (1e9 * self.gflops)

    @property
    def seconds_for_bytes(self) -> float:
        """The floor that memory traffic sets."""
        return self.bytes / (1e9 * self.gbytes_per_second)

    def table(self) -> Table:
        """For printing."""
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
    """Fill one table."""
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
    """Time the cases whose first update went well, in turns."""
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
            ratios = [mine / plain for mine, plain in zip(values, seconds[PLAIN], strict=True)]
            figures.relative_to_plain = median(ratios)


@dataclass(frozen=True)
class Exponents:
    """`value ~ T^tasks * D^parameters`; None where only one T, or only one D, was measured."""

    tasks: float | None
    parameters: float | None


def fit_exponents(tasks: Sequence[float], parameters: Sequence[float], values: Sequence[float]) -> Exponents:
    """The exponents that fit best in the logarithms (least squares); all arguments are positive and equally long."""
    known = {"tasks": np.log(tasks), "parameters": np.log(parameters)}
    varying = {name: column for name, column in known.items() if len(set(column.tolist())) > 1}
    fitted: dict[str, float] = {}
    if len(values) > len(varying):
        matrix = np.column_stack([np.ones(len(values)), *varying.values()])
        solution, _, rank, _ = np.linalg.lstsq(matrix, np.log(values), rcond=None)
        if rank == matrix.shape[1]:  # otherwise T and D changed only together, and which of them did it is open
            fitted = dict(zip(varying, solution[1:].tolist(), strict=True))
    return Exponents(fitted.get("tasks"), fitted.get("parameters"))


def exponents(measurements: Sequence[Measurement], cases: Sequence[str]) -> dict[str, dict[str, Exponents]]:
    """Of time and memory, for each case, over all tables that have it."""
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
    """Run and print."""
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
            if config.json is not None:  # after each table, so that an interrupted run leaves what it has found
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
