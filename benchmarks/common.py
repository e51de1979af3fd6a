"""What the benchmarks share: turns, the machine's ceilings, an update's floor, processes of their own, JSON files."""

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
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")

PACKAGES = ("torch", "numpy", "stable-baselines3", "gymnasium", "torchjd")

STATUS = Path("/proc/self/status")
NO_TORCHJD = "TorchJD is not installed (extra `bench`), so its rows are left out"


@dataclass(frozen=True)
class Ceilings:
    """What one core of this machine gives at best, measured: no update can be faster."""

    gflops: float
    """Floating-point operations (float32) per nanosecond, by a product of large matrices."""

    gbytes_per_second: float
    """Bytes read plus bytes written per nanosecond, by copying more than the caches hold."""


def interleaved(cases: dict[str, Callable[[], None]], rounds: int, updates: int) -> dict[str, list[float]]:
    """Seconds per update of each case, one figure per round.

    The cases take turns, so that a change in the machine's speed meets all of them: the ratio of two cases in one
    round is free of drift between rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, update in cases.items():
            start = time.perf_counter()
            for _ in range(updates):
                update()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / updates)
    return seconds


def ceilings(repeats: int = 10) -> Ceilings:
    """Measure what this machine gives at best with the present number of torch threads, in about a second.

    A ceiling is the best of `repeats` tries: whatever else runs can only make one slower.
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
    """Seconds that `work` takes when least disturbs it."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def parameters_of(sizes: Sequence[int]) -> int:
    """Weights and biases of a perceptron whose layers have these widths, inputs and outputs included."""
    return sum((before + 1) * after for before, after in pairwise(sizes))


def flops_of_update(sizes: Sequence[int], rows: int, double_q: bool | None) -> int:
    """Floating-point operations that the gradient of a summed loss needs, in the products of matrices alone.

    Every product of a layer is 2 * rows * inputs * outputs operations: one going forward, and going backward one for
    the weights and one for the layer's input, which the first layer does not need.

    Args:
        sizes: widths of the layers, inputs and outputs included.
        rows: of the batch, all tasks together.
        double_q: whether the targets take two more forward passes (double Q-learning) or one; None: they are given.
    """
    products = [2 * rows * before * after for before, after in pairwise(sizes)]
    passes_for_targets = 0 if double_q is None else 1 + double_q
    return (1 + passes_for_targets) * sum(products) + 2 * sum(products) - products[0]


def bytes_of_update(sizes: Sequence[int], rows: int) -> int:
    """Bytes (float32) that the gradient of a summed loss moves where no cache keeps anything, targets given.

    Every parameter is read going forward and going backward, and its gradient written; every value of a layer is
    written and read again, and so is its gradient. An update that fits into the caches can do with less.
    """
    return 4 * (3 * parameters_of(sizes) + 4 * rows * sum(sizes))


@dataclass(frozen=True)
class Floor:
    """What the updates of one environment step take at least: their matrix products, at the speed of a large one."""

    flops_of_update: int
    """Floating-point operations of one update, as PyTorch counts them."""

    bytes_of_update: int
    """Bytes that its gradient moves where no cache keeps anything."""

    seconds_per_step: float
    """Of one core, per environment step."""

    ceilings: Ceilings

    @classmethod
    def of(cls, update: Callable[[], object], bytes_of_update: int, updates_per_step: float) -> Floor:
        """Count the operations of `update`, and measure the machine."""
        counts = []
        for _ in range(2):  # in a row: now and then one does more, as measure how much the tasks conflict
            with FlopCounterMode(display=False) as counter:
                update()
            counts.append(counter.get_total_flops())
        flops, most = min(counts), ceilings()
        return cls(flops, bytes_of_update, updates_per_step * flops / most.gflops / 1e9, most)

    def __str__(self) -> str:
        flops, most = self.flops_of_update / 1e6, self.ceilings
        moving = 1e-3 * self.bytes_of_update / most.gbytes_per_second
        return (
            f"floor: {1e6 * self.seconds_per_step:.0f} microseconds per environment step for the matrix products of "
            f"updates of {flops:.1f} million floating-point operations at {most.gflops:.0f} per nanosecond; moving "
            f"{self.bytes_of_update / 1e6:.1f} MB in each at {most.gbytes_per_second:.0f} GB/s would take {moving:.0f} "
            "microseconds, but they stay in the caches"
        )


class NoAnswerError(RuntimeError):
    """A process did not give its answer; the message says why."""


def in_own_process(
    function: Callable[..., T], *arguments: object, limit: float, environment: Mapping[str, str] | None = None
) -> T:
    """`function(*arguments)` in a fresh process, which is ended after `limit` seconds.

    `environment` are variables that it has besides the present ones.

    Raises:
        NoAnswerError: the limit was reached, or the process ended early, as for want of memory.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    with _environment(environment or {}):
        process.start()
    sender.close()  # the child has the only other end, so that its death ends the wait
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
    """Inside, processes start with these variables besides the present ones."""
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
    """The highest resident memory of this process, in bytes, so far or since `restart_peak_memory`."""
    if STATUS.exists():
        # Not `getrusage`: on Linux a child process begins with its parent's peak there.
        (kibibytes,) = (line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(kibibytes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def restart_peak_memory() -> None:
    """Let `peak_memory` begin again from the present memory, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def progress_bar() -> Progress:
    """A bar that vanishes when it is done; none where the output goes to a file."""
    return Progress(transient=True, disable=not Console().is_terminal)


def has_torchjd() -> bool:
    """Whether the peer that balancers are compared with is installed."""
    return find_spec("torchjd") is not None


def check_json(path: Path | None) -> None:
    """Find out before anything is measured that the figures can't be written.

    Raises:
        ValueError: a folder is in the way, or a file where a folder is needed.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder; figures need a file")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"'{parent}' is a file; figures need a folder")


def write_json(path: Path, config: Any, figures: dict[str, Any]) -> None:
    """Write figures with the settings (a dataclass) and versions that made them, in one step."""
    installed = [package for package in PACKAGES if package != "torchjd" or has_torchjd()]
    content = {
        "settings": asdict(config),
        "versions": {package: importlib.metadata.version(package) for package in installed},
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(content, indent=2, default=str) + "\n")
    os.replace(draft, path)
