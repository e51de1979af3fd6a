"""`python -m benchmarks.training`: environment steps per second of whole training runs, at equal work.

`--algorithm` chooses Q-learning or soft actor-critic. Its networks, losses and updates per step, which are the same in
all compared cases, are described in `benchmarks/training_dqn.py` and `benchmarks/training_sac.py`.

All cases learn three tasks from 3 x 4 columns of one vector environment. Observations are blind, so that the networks
are the same in all cases. Every update has 3 x 64 = 192 transitions, and from the first step on there are equally many
updates per vector step. The replay size is the same, and all have one-step transitions, Adam with the same constant
learning rate, networks without layer norm, and updates without a memory of directions. The cases differ in the code:

* "ours equal", "ours pcgrad": our agent with that balancer;
* "SB3 ...": the unchanged agent of Stable-Baselines3 on one batch of 192, without balancing;
* "SB3 ... + TorchJD PCGrad": what a user of both libraries would write, with TorchJD's fastest way to these gradients:
  one forward pass for all tasks, `parallel_chunk_size=1`, `optimize_gramian_computation=True`;
* "ours, default settings": our agent with its defaults (task-aware, 3-step returns, and so on), which is not compared.
  It shows the share of collection in a run's time; collection is everything except `train`.

The cases take turns in rounds of equally many steps, so that a change in the machine's speed affects all of them alike.
Figures are medians over rounds, and a ratio is taken within each round. There is one torch thread. For Q-learning there
is a floor: the time of the updates' matrix products alone at the speed of a large product, measured in the same run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import training_dqn, training_sac
from benchmarks.common import (
    NO_TORCHJD,
    Floor,
    TurnsConfig,
    bytes_of_update,
    has_torchjd,
    median_ratio,
    progress_bar,
    write_json,
)
from benchmarks.training_case import BATCH, ENVIRONMENTS, HIDDEN, TASKS, WARM_UP, Algorithm, Case, take_turns
from experiments.program.command import run
from mtrl.limits import check_number

ALGORITHMS = {"dqn": training_dqn.ALGORITHM, "sac": training_sac.ALGORITHM}
OURS, OURS_PCGRAD, DEFAULTS = "ours equal", "ours pcgrad", "ours, default settings"


@dataclass(frozen=True)
class BenchmarkConfig(TurnsConfig):
    """Measure training steps per second against Stable-Baselines3, alone and with TorchJD, at equal work.

    Every case has the same network, the same batch size and the same number of updates per environment step. The cases
    take turns. Ratios above 1 mean that this project is faster. The first lines of benchmarks/training.py list all that
    is equal.
    """

    algorithm: Literal["dqn", "sac"] = "dqn"
    """What learns: Q-learning, or a soft actor-critic on the same tasks with continuous actions."""

    seed: int = 0
    """Seed of environments and agents."""

    side_by_side: bool = False
    """Also compare two runs with default settings, in two processes at once, with one run alone. This takes as many
    seconds again."""

    def __post_init__(self) -> None:
        check_number("seed", self.seed, least=0, whole=True)
        super().__post_init__()


def equal_work(algorithm: Algorithm, seed: int) -> dict[str, Case]:
    """The cases that are compared. TorchJD's case is left out if TorchJD is not installed."""
    cases = {
        OURS: algorithm.case_of_ours("equal", seed),
        OURS_PCGRAD: algorithm.case_of_ours("pcgrad", seed),
        algorithm.sb3_name: algorithm.case_of_theirs(algorithm.sb3, seed),
    }
    if has_torchjd():
        cases[algorithm.torchjd_name] = algorithm.case_of_theirs(algorithm.torchjd, seed)
    return cases


@dataclass(frozen=True)
class SideBySide:
    """The speed of two processes at once and of one alone, in environment steps per second."""

    alone: float
    together: float
    ratio: float


def side_by_side(seconds: float, rounds: int, seed: int, algorithm: str = "dqn") -> SideBySide:
    """Measure one run alone and two runs at once in turns, for about `seconds`."""
    context = get_context("spawn")
    pipes = []
    for number in range(2):
        ours, theirs = context.Pipe()
        context.Process(target=_run_on_request, args=(theirs, seed + number, algorithm), daemon=True).start()
        theirs.close()  # now only the process has this end, so that `recv` does not wait for ever if it dies
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()  # the process has warmed up
    turn = seconds / (2 * rounds)
    alone, together = [], []
    with progress_bar() as progress:
        for _ in progress.track(range(rounds), description="two processes at once"):
            alone.append(_speed(pipes[:1], turn))
            together.append(_speed(pipes, turn))
    for pipe in pipes:
        pipe.send(0.0)  # ends the process
    ratios = [both / one for one, both in zip(alone, together, strict=True)]
    return SideBySide(median(alone), median(together), median(ratios))


def _speed(pipes: Sequence[Connection[float, float]], seconds: float) -> float:
    """The environment steps per second of all these processes together, which run at the same time."""
    for pipe in pipes:
        pipe.send(seconds)
    return sum(pipe.recv() for pipe in pipes)


def _run_on_request(pipe: Connection[float, float], seed: int, algorithm: str) -> None:
    """Train in a process of its own: for each number of seconds that arrives, send the steps per second."""
    torch.set_num_threads(1)
    case = ALGORITHMS[algorithm].case_with_defaults(seed)
    case.advance(WARM_UP)
    pipe.send(0.0)
    while seconds := pipe.recv():
        start, before = time.perf_counter(), case.steps
        while (elapsed := time.perf_counter() - start) < seconds:
            case.advance(5 * ENVIRONMENTS)
        pipe.send((case.steps - before) / elapsed)


def ratio(figures: dict[str, list[float]], faster: str, slower: str) -> float | None:
    """How many times as fast as `slower` the case `faster` is, or None if `slower` was not measured."""
    if slower not in figures:
        return None
    return median_ratio(figures[slower], figures[faster])


def benchmark(config: BenchmarkConfig) -> None:
    """Run the benchmark and print its table."""
    torch.set_num_threads(1)  # two threads are slower at these sizes
    console = Console()
    if not has_torchjd():
        console.print(NO_TORCHJD)
    algorithm = ALGORITHMS[config.algorithm]
    compared = equal_work(algorithm, config.seed)
    cases = compared | {DEFAULTS: algorithm.case_with_defaults(config.seed)}
    figures = take_turns(cases, config.seconds, config.rounds)
    speed = {name: median(1 / seconds for seconds in values) for name, values in figures.items()}
    share = {name: case.collecting / case.seconds for name, case in cases.items()}
    updates_per_step = {name: case.updates_per_step for name, case in cases.items()}

    sb3, torchjd = algorithm.sb3_name, algorithm.torchjd_name
    title = f"{algorithm.updates} updates of {TASKS} x {BATCH} transitions per {ENVIRONMENTS} steps"
    table = Table("case", "steps/s", f"to {sb3}", "collection", title=title)
    for name in cases:
        if name == DEFAULTS:
            table.add_section()
        compare = f"{ratio(figures, name, sb3):.2f}" if name in compared else ""
        table.add_row(name, f"{speed[name]:,.0f}", compare, f"{share[name]:.0%}")
    console.print(table)

    to_sb3, to_torchjd = ratio(figures, OURS, sb3), ratio(figures, OURS_PCGRAD, torchjd)
    console.print(f"{OURS} is {to_sb3:.2f} times as fast as {sb3}")
    if to_torchjd is not None:
        console.print(f"{OURS_PCGRAD} is {to_torchjd:.2f} times as fast as {torchjd}")
    console.print(f"collection takes {share[DEFAULTS]:.0%} of the time at the default settings")
    above_floor: dict[str, Any] = {}
    if config.algorithm == "dqn":
        above_floor = measure_floor(algorithm, {name: figures[name] for name in compared}, cases[OURS], console)
    pair = None
    if config.side_by_side:
        pair = side_by_side(config.seconds, config.rounds, config.seed, config.algorithm)
        console.print(
            f"two processes at once make {pair.together:,.0f} steps/s, {pair.ratio:.2f} times the {pair.alone:,.0f} "
            "of one alone"
        )
    if config.json is not None:
        content = {
            "steps_per_second": speed,
            "ratio_to_sb3": to_sb3,
            "ratio_to_sb3_torchjd": to_torchjd,
            **above_floor,
            "collection_share": share[DEFAULTS],
            "collection_share_of_each": share,
            "updates_per_step": updates_per_step,
            "parameters": {name: case.parameters for name, case in cases.items()},
            "side_by_side": None if pair is None else asdict(pair),
        }
        write_json(config.json, config, content)


def measure_floor(
    algorithm: Algorithm, figures: dict[str, list[float]], case: Case, console: Console
) -> dict[str, Any]:
    """Print the floor of an update of a Q-network, which is that of `case`, and return it with its multiples."""
    moved = bytes_of_update((8, *HIDDEN, 4), TASKS * BATCH)
    floor = Floor.of(lambda: case.agent.train(1, BATCH), moved, algorithm.updates / ENVIRONMENTS)
    over = {name: median(values) / floor.seconds_per_step for name, values in figures.items()}
    console.print(
        f"{floor.text()}; {', '.join(f'{name} takes {times:.1f} times the floor' for name, times in over.items())}"
    )
    return {"floor": asdict(floor), "times_floor": over}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.training")


if __name__ == "__main__":
    sys.exit(main())
