"""`python -m benchmarks.memory`: peak memory of one update, relative to an ordinary backward pass.

A perceptron of 20 million shared parameters with one small head per task takes one batch. Every case runs in a fresh
process, with one torch thread; its figure is by how much the highest resident memory of that process
(`getrusage(RUSAGE_SELF).ru_maxrss`) rises from the moment when model and batch are in place to the moment when all
`.grad` are filled. So it counts activations, gradients and whatever the method holds besides, and leaves out the
parameters, which every case has alike. The same update of a tiny model comes before, so that what libraries set up once
does not count; and glibc is told (`MALLOC_MMAP_THRESHOLD_`) to give large blocks back when they are freed, so that
holes in its heap, which differ from run to run, do not count either. "backward" is what one writes without this
project: `sum(losses).backward()`.

Low-memory mode holds T gradients of the largest layer, so its figure depends on that layer's share of the whole:
compare `--width 2048 --layers 5`, as many parameters in fewer layers.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from experiments.program.command import run
from mtrl.balancers import make_balancer, names

INPUTS, FEATURES = 784, 1024
ORDINARY, LOW_MEMORY, TORCHJD, PLAIN = "", ", low memory", "TorchJD, PCGrad", "backward"


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure the peak memory of one update of a large model, each case in a process of its own."""

    tasks: int = 10
    """Tasks, each with a head."""

    width: int = 1600
    """Units in each hidden layer."""

    layers: int = 8
    """Hidden layers."""

    batch_size: int = 128
    """Samples, which all tasks see."""

    balancers: tuple[str, ...] = ("pcgrad",)
    """Measured in the ordinary and in the low-memory mode."""

    repeats: int = 3
    """Processes per case; the figures are medians."""

    json: Path | None = None
    """Write the figures to this file as well."""

    def __post_init__(self) -> None:
        for name in self.balancers:
            if name not in names():
                raise ValueError(f"unknown balancer {name!r}; balancers are {', '.join(names())}")


@dataclass(frozen=True)
class Figures:
    """What one process measured."""

    mebibytes: float
    seconds: float


class Perceptron(nn.Module):
    """Shared layers and one head per task."""

    def __init__(self, sizes: Sequence[int], tasks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, after in pairwise(sizes):
            layers += [nn.Linear(width, after), nn.ReLU()]
        self.shared = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(sizes[-1], 10) for _ in range(tasks))

    def losses(self, x: Tensor) -> list[Tensor]:
        """One scalar per task."""
        features = self.shared(x)
        return [(head(features) - task).pow(2).mean() for task, head in enumerate(self.heads)]


def update(case: str, model: Perceptron, x: Tensor) -> None:
    """Fill every `.grad`."""
    losses = model.losses(x)
    if case == PLAIN:
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    elif case == TORCHJD:
        from torchjd.aggregation import PCGrad  # noqa: PLC0415 - optional
        from torchjd.autojac import backward, jac_to_grad  # noqa: PLC0415

        torch.stack(losses).sum().backward(inputs=list(model.heads.parameters()), retain_graph=True)  # type: ignore[no-untyped-call]
        shared = list(model.shared.parameters())
        backward(losses, inputs=shared, parallel_chunk_size=1)
        jac_to_grad(shared, PCGrad())
    else:
        name = case.removesuffix(LOW_MEMORY)
        make_balancer(name, len(losses)).backward(losses, model.shared.parameters(), low_memory=name != case)


def peak() -> int:
    """The highest resident memory of this process so far, in bytes."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def widths(config: BenchmarkConfig) -> tuple[int, ...]:
    """Of all layers, inputs included."""
    return (INPUTS, *(config.width,) * config.layers, FEATURES)


def measure(case: str, config: BenchmarkConfig) -> Figures:
    """Run one case, in the process that this is called in."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    update(case, Perceptron((8, 8, 8), config.tasks), torch.randn(4, 8))
    model, x = Perceptron(widths(config), config.tasks), torch.randn(config.batch_size, INPUTS)
    before, start = peak(), time.perf_counter()
    update(case, model, x)
    seconds = time.perf_counter() - start
    assert all(parameter.grad is not None for parameter in model.parameters())
    return Figures((peak() - before) / 2**20, seconds)


def benchmark(config: BenchmarkConfig) -> None:
    """Run and print."""
    cases = [PLAIN, *(name + mode for name in config.balancers for mode in (ORDINARY, LOW_MEMORY)), TORCHJD]
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**18)  # for the processes that are started from here
    jobs = [case for _ in range(config.repeats) for case in cases]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        figures = list(processes.map(measure, jobs, [config] * len(jobs)))
    median = {}
    for case in cases:
        of_case = [found for job, found in zip(jobs, figures, strict=True) if job == case]
        median[case] = Figures(
            statistics.median(found.mebibytes for found in of_case),
            statistics.median(found.seconds for found in of_case),
        )
    with torch.device("meta"):
        shared = sum(p.numel() for p in Perceptron(widths(config), 1).shared.parameters())
    title = f"T = {config.tasks}, D = {shared / 1e6:.1f} million"
    table = Table("update", "peak, MiB", "relative to backward", "seconds", title=title)
    for case, typical in median.items():
        ratio = typical.mebibytes / median[PLAIN].mebibytes
        table.add_row(case, f"{typical.mebibytes:.0f}", f"{ratio:.2f}", f"{typical.seconds:.2f}")
    Console().print(table)
    if config.json is not None:
        found = {case: asdict(typical) for case, typical in median.items()}
        config.json.write_text(json.dumps({"parameters": shared, "cases": found}, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.memory")


if __name__ == "__main__":
    sys.exit(main())
