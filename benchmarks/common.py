"""Shared parts of the benchmarks: flags, turns, ceilings and floors, separate processes, memory, and JSON files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtrl.files import replacing
from mtrl.limits import check_number

T = TypeVar("T")

PACKAGES = ("torch", "numpy", "stable-baselines3", "gymnasium", "torchjd")

STATUS = Path("/proc/self/status")
NO_TORCHJD = "TorchJD is not installed (extra `bench`), so its rows are left out"
# With this variable, glibc returns large blocks to the system when they are freed, so that holes in its heap do not
# count as memory. It makes processes slower.
TIDY = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}


@dataclass(frozen=True)
class JsonConfig:
    """The flag of every benchmark."""

    json: Path | None = None
    """Write the figures to this file as well."""

    def __post_init__(self) -> None:
        check_json(self.json)


@dataclass(frozen=True)
class TurnsConfig(JsonConfig):
    """The flags of a benchmark of cases that take turns."""

    seconds: float = 60.0
    """Measured time, split over cases and rounds. A short warm-up comes before it."""

    rounds: int = 10
    """Number of turns that every case has."""

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, above=0)
        check_number("rounds", self.rounds, least=1, whole=True)
        super().__post_init__()


@dataclass(frozen=True)
class Ceilings:
    """The measured speed limits of one core of this machine. No update can be faster."""

    gflops: float
    """Floating-point operations (float32) per nanosecond, in a product of large matrices."""

    gbytes_per_second: float
    """Bytes read plus bytes written per nanosecond, in a copy of more data than the caches hold."""


def interleaved(
    cases: dict[str, Callable[[], None]], rounds: int, updates: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Time all cases in turns.

    A change in the machine's speed affects all cases alike, so that the ratio of two cases in one round is free of
    drift between rounds.

    Args:
        cases: one update of each case, by the case's name.
        rounds: the number of turns of each case.
        updates: the number of updates in each turn.
        device: where the updates work. A turn ends when a GPU has finished the last update of it.

    Returns:
        For each case, the seconds per update in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, update in cases.items():
            start = time.perf_counter()
            for _ in range(updates):
                update()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / updates)
    return seconds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of the ratio of two figures of the same round."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def torchjd_pcgrad(parameters: Sequence[nn.Parameter], **options: bool) -> Callable[[Tensor | Sequence[Tensor]], None]:
    """A function that fills `.grad` of the parameters by TorchJD's PCGrad, given the losses (T,).

    One backward pass per task is the fastest of the choices that TorchJD offers for these losses.

    Args:
        parameters: the shared parameters.
        options: arguments of TorchJD's `jac_to_grad`.
    """
    from torchjd.aggregation import PCGrad  # noqa: PLC0415 - TorchJD is optional
    from torchjd.autojac import backward, jac_to_grad  # noqa: PLC0415

    pcgrad = PCGrad()

    def fill(losses: Tensor | Sequence[Tensor]) -> None:
        backward(losses, inputs=parameters, parallel_chunk_size=1)
        jac_to_grad(parameters, pcgrad, **options)

    return fill


def ceilings(repeats: int = 10) -> Ceilings:
    """Measure the machine's speed limits with the present number of torch threads, in about a second.

    A ceiling is the best of `repeats` tries, because other work on the machine can only make a try slower.
    """
    gflops = max(
        2 * size**3 / _best(lambda: torch.mm(a, b, out=out), repeats) / 1e9  # noqa: B023 - called at once
        for size in (512, 768, 1024)
        for a, b, out in [torch.randn(3, size, size)]
    )
    source, target = torch.ones(2, 2**25)  # 128 MiB each
    gbytes = 2 * source.nbytes / _best(lambda: target.copy_(source), repeats) / 1e9
    return Ceilings(gflops, gbytes)


def _best(work: Callable[[], object], repeats: int) -> float:
    """The shortest of the times that `work` takes, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def parameters_of(sizes: Sequence[int]) -> int:
    """The number of weights and biases of a perceptron with layers of these widths, from the input to the output."""
    return sum((before + 1) * after for before, after in pairwise(sizes))


def flops_of_update(sizes: Sequence[int], rows: int, double_q: bool | None) -> int:
    """The floating-point operations of the matrix products in the gradient of a summed loss.

    A product of a layer has 2 * rows * inputs * outputs operations. The forward pass has one product per layer. The
    backward pass has one for the layer's weights and one for its input, which the first layer does not need.

    Args:
        sizes: the widths of the layers, from the input to the output.
        rows: the rows of the batch, over all tasks.
        double_q: True if the targets need two more forward passes (double Q-learning), False if they need one more, and
            None if they are given.
    """
    products = [2 * rows * before * after for before, after in pairwise(sizes)]
    passes_for_targets = 0 if double_q is None else 1 + double_q
    return (1 + passes_for_targets) * sum(products) + 2 * sum(products) - products[0]


def bytes_of_update(sizes: Sequence[int], rows: int) -> int:
    """The bytes (float32) that the gradient of a summed loss moves without caches, if the targets are given.

    Every parameter is read in the forward and in the backward pass, and its gradient is written. Every value of a layer
    is written and read again, and so is its gradient. An update that fits into the caches moves fewer bytes.
    """
    return 4 * (3 * parameters_of(sizes) + 4 * rows * sum(sizes))


@dataclass(frozen=True)
class Floor:
    """The least time for updates: the time of their matrix products at the speed of a large product."""

    flops_of_update: int
    """Floating-point operations of one update."""

    bytes_of_update: int
    """Bytes that the gradient of one update moves without caches."""

    seconds_per_step: float
    """Seconds of one core for the updates of one environment step."""

    ceilings: Ceilings

    @classmethod
    def of(cls, update: Callable[[], object], bytes_of_update: int, updates_per_step: float) -> Floor:
        """Let PyTorch count the operations of `update`, and measure the machine."""
        counts = []
        for _ in range(
            2
        ):  # some updates do more, for example to measure how much the tasks conflict, but not two in a row
            with FlopCounterMode(display=False) as counter:
                update()
            counts.append(counter.get_total_flops())
        return cls.at(ceilings(), min(counts), bytes_of_update, updates_per_step)

    @classmethod
    def at(cls, most: Ceilings, flops_of_update: int, bytes_of_update: int, updates_per_step: float = 1.0) -> Floor:
        """The floor of updates of this size on a machine with these ceilings."""
        return cls(flops_of_update, bytes_of_update, updates_per_step * flops_of_update / most.gflops / 1e9, most)

    def text(self, step: str = "environment step") -> str:
        """The floor in one sentence; `step` is the name of the unit of `seconds_per_step`."""
        flops, most = self.flops_of_update / 1e6, self.ceilings
        moving = 1e-3 * self.bytes_of_update / most.gbytes_per_second
        return (
            f"floor: {1e6 * self.seconds_per_step:.0f} microseconds per {step} for the matrix products of "
            f"updates of {flops:.1f} million floating-point operations at {most.gflops:.0f} per nanosecond; moving "
            f"{self.bytes_of_update / 1e6:.1f} MB in each at {most.gbytes_per_second:.0f} GB/s would take {moving:.0f} "
            "microseconds, but they stay in the caches"
        )


class NoAnswerError(RuntimeError):
    """A process ended without an answer; the message says why."""


def in_own_process(
    function: Callable[..., T], *arguments: object, limit: float, environment: Mapping[str, str] | None = None
) -> T:
    """Call `function(*arguments)` in a new process and return its result.

    Args:
        function: the function to call.
        arguments: its arguments.
        limit: the process is ended after this many seconds.
        environment: environment variables of the process, in addition to the present ones. Default: none.

    Raises:
        NoAnswerError: the limit was reached, or the process ended early, for example because memory ran out.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    with _environment(environment or {}):
        process.start()
    sender.close()  # now only the process has this end, so that the wait ends if the process dies
    try:
        if not receiver.poll(limit):
            raise NoAnswerError(f"took more than {limit:g} s")
        answer: T = receiver.recv()
    except EOFError:
        process.join()
        raise NoAnswerError(f"ended early, with exit status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    return answer


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that start in this context have these environment variables in addition to the present ones."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _answer(sender: Connection, function: Callable[..., object], arguments: Sequence[object]) -> None:
    sender.send(function(*arguments))


def peak_memory() -> int:
    """The highest resident memory of this process in bytes, since its start or since `restart_peak_memory`."""
    if STATUS.exists():
        # `getrusage` is not used on Linux, because a child process begins with its parent's peak there.
        (kibibytes,) = (line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(kibibytes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def restart_peak_memory() -> None:
    """Reset the peak to the present memory, on systems that can do so (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def progress_bar() -> Progress:
    """A progress bar that vanishes at its end. Nothing is shown if the output goes to a file."""
    return Progress(transient=True, disable=not Console().is_terminal)


def has_torchjd() -> bool:
    """Whether TorchJD, with which balancers are compared, is installed."""
    return find_spec("torchjd") is not None


def check_json(path: Path | None) -> None:
    """Check before any measurement that the figures can be written to `path`.

    Raises:
        ValueError: `path` is a folder, or one of its parents is a file.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder; figures need a file")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"'{parent}' is a file; figures need a folder")


def write_json(path: Path, config: Any, figures: dict[str, Any]) -> None:
    """Write figures, the settings `config` (a dataclass) and the versions of the packages, in one step."""
    installed = [package for package in PACKAGES if package != "torchjd" or has_torchjd()]
    content = {
        "settings": asdict(config),
        "versions": {package: importlib.metadata.version(package) for package in installed},
        **figures,
    }
    with replacing(path) as file:
        file.write(f"{json.dumps(content, indent=2, default=str)}\n".encode())
