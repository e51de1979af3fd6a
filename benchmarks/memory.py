"""`python -m benchmarks.memory`: peak memory of one update, relative to an ordinary backward pass.

A perceptron of 20 million shared parameters, with one small head per task, takes one batch. Every case runs in a new
process with one torch thread. Its figure is the rise of the process's highest resident memory, from the moment when the
model and the batch are in place to the moment when all `.grad` are filled. The figure includes activations, gradients
and everything else that the method holds. It does not include the parameters, which are the same in every case. The
same update of a tiny model comes first, so that memory that libraries allocate once does not count. glibc returns large
blocks to the system when they are freed (`MALLOC_MMAP_THRESHOLD_`), so that holes in its heap, which differ from run to
run, do not count either. "backward" is PyTorch alone: `sum(losses).backward()`.

Low-memory mode holds T gradients of the largest layer, so its figure depends on the share of that layer in the whole.
`--width 2048 --layers 5` has the same number of parameters in fewer layers.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.common import (
    NO_TORCHJD,
    TIDY,
    JsonConfig,
    has_torchjd,
    in_own_process,
    peak_memory,
    progress_bar,
    restart_peak_memory,
    torchjd_pcgrad,
    write_json,
)
from experiments.program.command import run
from mtrl.balancers import make_balancer, names
from mtrl.limits import check_number

INPUTS, FEATURES = 784, 1024
ORDINARY, LOW_MEMORY, TORCHJD, PLAIN = "", ", low memory", "TorchJD, PCGrad", "backward"
LIMIT = 3_600.0  # seconds that a process may take


@dataclass(frozen=True)
class BenchmarkConfig(JsonConfig):
    """Measure the peak memory of one update of a large model, each case in a process of its own."""

    tasks: int = 10
    """Number of tasks. Each task has a head."""

    width: int = 1600
    """Units in each hidden layer."""

    layers: int = 8
    """Hidden layers."""

    batch_size: int = 128
    """Samples. All tasks see the same ones."""

    balancers: tuple[str, ...] = ("pcgrad",)
    """Balancers, which are measured in the ordinary and in the low-memory mode."""

    repeats: int = 3
    """Processes per case. The figures are medians over them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "width", "layers", "batch_size", "repeats"):
            check_number(name, getattr(self, name), least=1, whole=True)
        for name in self.balancers:
            if name not in names():
                raise ValueError(f"unknown balancer {name!r}; balancers are {', '.join(names())}")


@dataclass(frozen=True)
class Figures:
    """The measurements of one process."""

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
        """One scalar loss per task."""
        features = self.shared(x)
        return [(head(features) - task).pow(2).mean() for task, head in enumerate(self.heads)]


def update(case: str, model: Perceptron, x: Tensor) -> None:
    """Fill every `.grad`."""
    losses = model.losses(x)
    if case == PLAIN:
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    elif case == TORCHJD:
        torch.stack(losses).sum().backward(inputs=list(model.heads.parameters()), retain_graph=True)  # type: ignore[no-untyped-call]
        torchjd_pcgrad(list(model.shared.parameters()))(losses)
    else:
        name = case.removesuffix(LOW_MEMORY)
        make_balancer(name, len(losses)).backward(losses, model.shared.parameters(), low_memory=name != case)


def widths(config: BenchmarkConfig) -> tuple[int, ...]:
    """The widths of all layers, from the input on."""
    return (INPUTS, *(config.width,) * config.layers, FEATURES)


def measure(case: str, config: BenchmarkConfig) -> Figures:
    """Run one case in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    update(case, Perceptron((8, 8, 8), config.tasks), torch.randn(4, 8))
    model, x = Perceptron(widths(config), config.tasks), torch.randn(config.batch_size, INPUTS)
    restart_peak_memory()
    before, start = peak_memory(), time.perf_counter()
    update(case, model, x)
    seconds = time.perf_counter() - start
    assert all(parameter.grad is not None for parameter in model.parameters())
    return Figures((peak_memory() - before) / 2**20, seconds)


def benchmark(config: BenchmarkConfig) -> None:
    """Run the benchmark and print its table."""
    console = Console()
    cases = [PLAIN, *(name + mode for name in config.balancers for mode in (ORDINARY, LOW_MEMORY)), TORCHJD]
    if not has_torchjd():
        console.print(NO_TORCHJD)
        cases.remove(TORCHJD)
    figures: dict[str, list[Figures]] = {case: [] for case in cases}
    with progress_bar() as progress:
        for case in progress.track(cases * config.repeats, description="a process per case"):
            figures[case].append(in_own_process(measure, case, config, limit=LIMIT, environment=TIDY))
    median = {
        case: Figures(
            statistics.median(one.mebibytes for one in found), statistics.median(one.seconds for one in found)
        )
        for case, found in figures.items()
    }
    with torch.device("meta"):
        shared = sum(p.numel() for p in Perceptron(widths(config), 1).shared.parameters())
    title = f"T = {config.tasks}, D = {shared / 1e6:.1f} million"
    table = Table("update", "peak, MiB", "relative to backward", "seconds", title=title)
    for case, typical in median.items():
        ratio = typical.mebibytes / median[PLAIN].mebibytes
        table.add_row(case, f"{typical.mebibytes:.0f}", f"{ratio:.2f}", f"{typical.seconds:.2f}")
    console.print(table)
    if config.json is not None:
        found = {case: asdict(typical) for case, typical in median.items()}
        write_json(config.json, config, {"parameters": shared, "cases": found})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.memory")


if __name__ == "__main__":
    sys.exit(main())
