"""`python -m benchmarks.time_to_return`: the time that a method trains until its greedy policy reaches a mean return.

The benchmark trains as `python -m experiments.<method>.train` does, with the method's default settings. Every
`--eval-interval` steps it plays greedy episodes of each task, with seeds that no training uses. A target is reached at
the first evaluation with at least this mean return over the tasks. Three clocks measure the time until then:

* training seconds: wall-clock time without evaluations; it depends on other work on the machine;
* CPU seconds: processor time of the training process without evaluations;
* seconds with evaluation: wall-clock time up to the end of the evaluation that reached the target.

There is one torch thread. In a median over seeds, a seed that does not reach the target counts as infinitely long. The
floor is the time of the updates' matrix products alone at the speed of a large product, measured at the end.

    python -m benchmarks.time_to_return --method pcgrad --variant blind --seeds 100 101 102 --json pcgrad.json

With `--json` every finished seed is written at once. The same command continues with the seeds that are missing, and
more `--seeds` add more seeds.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

import agents
from agents import MultiTaskDQN
from benchmarks.common import Floor, JsonConfig, write_json
from envs import make_task_vec_env
from experiments.methods import METHODS
from experiments.program.command import run
from experiments.program.flags import UsageError
from experiments.training.algorithms import DQNTrainConfig
from experiments.training.config import Variant
from experiments.training.evaluation import CURVE_SEED, evaluate
from mtrl.limits import check_number


@dataclass(frozen=True)
class BenchmarkConfig(JsonConfig):
    """Measure how long a method trains, with its default settings, until greedy play reaches given mean returns.

    A seed takes about total_steps / 1500 seconds of training on one core. Evaluations take more time, which does not
    count.
    """

    method: str = "shared_dqn"
    """The name of the method, a package in experiments/."""

    variant: Variant = "aware"
    """`aware`: observations end with the one-hot of the task; `blind`: observations are the 8 state values alone."""

    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds. Each seed is one run."""

    targets: tuple[float, ...] = (200.0, 220.0)
    """Mean returns over the tasks. A run ends when it has reached the highest one."""

    total_steps: int | None = None
    """Largest number of environment steps. Default: the method's own default."""

    eval_interval: int = 20_000
    """Environment steps between evaluations."""

    episodes: int = 20
    """Episodes per task in each evaluation."""

    workers: int = 1
    """Number of seeds that run at the same time, each in a process. Only seconds measured with 1 can be compared."""

    to_the_end: bool = False
    """Continue after the highest target has been reached."""

    json: Path | None = None
    """Also write the figures and learning curves to this file after every seed, and skip seeds that it already has."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; methods are {', '.join(METHODS)}")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; give at least one, all different and none below 0")
        if not self.targets or not all(map(math.isfinite, self.targets)):
            raise ValueError(f"targets are {self.targets}; give at least one, all finite")
        for name in ("total_steps", "eval_interval", "episodes", "workers"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, least=1, whole=True)
        super().__post_init__()

    def training(self, seed: int) -> DQNTrainConfig:
        """The settings of one run, which are the method's defaults."""
        defaults = METHODS[self.method].presets["default"]
        total_steps = defaults.total_steps if self.total_steps is None else self.total_steps
        return replace(defaults, variant=self.variant, seed=seed, total_steps=total_steps)

    def shared(self) -> dict[str, Any]:
        """The settings that all runs of one file share, in the form of JSON."""
        own = {name: getattr(self, name) for name in ("method", "targets", "eval_interval", "episodes", "to_the_end")}
        training = {name: value for name, value in self.training(0).record.items() if name != "seed"}
        content: dict[str, Any] = json.loads(json.dumps({**own, "training": training}))
        return content


@dataclass(frozen=True)
class Point:
    """One evaluation: its time by steps and clocks, and its returns."""

    steps: int
    training_seconds: float
    cpu_seconds: float
    seconds_with_evaluation: float
    returns: dict[str, float]
    mean: float


@dataclass(frozen=True)
class Run:
    """The evaluations of one seed."""

    seed: int
    curve: list[Point]

    def reached(self, target: float) -> Point | None:
        """The first evaluation with at least this mean return, or None."""
        return next((point for point in self.curve if point.mean >= target), None)

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Run:
        """The inverse of `asdict`."""
        return cls(content["seed"], [Point(**point) for point in content["curve"]])


class LearningCurve(BaseCallback):
    """Evaluates at intervals, with the training clocks stopped, and ends the run at the highest target.

    Attributes:
        points: the evaluations so far.
    """

    def __init__(self, config: BenchmarkConfig, total_steps: int, on_point: Callable[[Point], None]) -> None:
        super().__init__()
        self.points: list[Point] = []
        self._config = config
        self._total_steps = total_steps
        self._on_point = on_point
        self._next = min(config.eval_interval, total_steps)
        self._training_seconds = self._cpu_seconds = 0.0

    def _on_training_start(self) -> None:
        self._begin = time.perf_counter()
        self._start_clocks()

    def _start_clocks(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _stop_clocks(self) -> None:
        self._training_seconds += time.perf_counter() - self._wall
        self._cpu_seconds += time.process_time() - self._cpu

    def _on_rollout_end(self) -> None:
        if self.num_timesteps < self._next:
            return
        self._stop_clocks()
        self._next = max(self._next + 1, min(self._next + self._config.eval_interval, self._total_steps))
        assert isinstance(self.model, MultiTaskDQN)
        found = evaluate(self.model, self.model.task_names, self._config.episodes, CURVE_SEED)
        point = Point(
            steps=self.num_timesteps,
            training_seconds=self._training_seconds,
            cpu_seconds=self._cpu_seconds,
            seconds_with_evaluation=time.perf_counter() - self._begin,
            returns={task: result.mean for task, result in found.tasks.items()},
            mean=found.mean,
        )
        self.points.append(point)
        self._on_point(point)
        self._start_clocks()

    def _on_step(self) -> bool:
        best = max((point.mean for point in self.points), default=-math.inf)
        return self._config.to_the_end or best < max(self._config.targets)


def make_agent(settings: DQNTrainConfig) -> tuple[MultiTaskDQN, VecEnv]:
    """The agent that the method's program would make, without a logger, and its environment."""
    env = make_task_vec_env(settings.tasks, settings.envs_per_task, settings.seed, settings.variant)
    kind: type[MultiTaskDQN] = getattr(agents, settings.agent)
    agent = kind("MlpPolicy", env, **settings.agent_kwargs)
    agent.set_logger(Logger(None, []))
    return agent, env


def floor_of(settings: DQNTrainConfig) -> Floor:
    """The least time for the updates of one environment step."""
    torch.set_num_threads(1)
    agent, env = make_agent(replace(settings, learning_starts=10**9))
    agent.learn(10 * env.num_envs)  # fills the replay without an update
    updates_per_step = settings.gradient_steps / settings.train_freq / env.num_envs
    env.close()
    # Only the bytes of the parameters are counted, which are read twice, and those of their gradient.
    parameters = sum(parameter.numel() for parameter in agent.policy.q_net.parameters())
    return Floor.of(lambda: agent.train(1, settings.batch_size), 3 * 4 * parameters, updates_per_step)


def train(config: BenchmarkConfig, seed: int) -> Run:
    """Train with one seed, and print a line of progress at each evaluation."""
    torch.set_num_threads(1)  # two threads are slower at these sizes
    settings = config.training(seed)
    console = Console()

    def show(point: Point) -> None:
        returns = "  ".join(f"{task} {value:.0f}" for task, value in point.returns.items())
        console.print(
            f"seed {seed}: {point.steps:,} of {settings.total_steps:,} steps, {point.training_seconds:.0f} s of "
            f"training  returns: {returns}  mean {point.mean:.0f}",
            highlight=False,
            soft_wrap=True,
        )

    agent, env = make_agent(settings)
    curve = LearningCurve(config, settings.total_steps, show)
    agent.learn(settings.total_steps, curve, log_interval=settings.log_interval)
    env.close()
    return Run(seed, curve.points)


@contextmanager
def processes(workers: int) -> Iterator[Callable[[Callable[[int], Run], Iterable[int]], Iterable[Run]]]:
    """A `map` over this many processes, which yields results in the order in which they finish.

    With one worker, `map` itself runs in this process.
    """
    if workers == 1:
        yield map
    else:
        with get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
            yield pool.imap_unordered


def _flat(shared: dict[str, Any]) -> dict[str, Any]:
    """The settings with one level of names, so that a message can name the one that differs."""
    return {name: value for name, value in shared.items() if name != "training"} | {
        f"training's {name}": value for name, value in shared["training"].items()
    }


def finished(config: BenchmarkConfig) -> list[Run]:
    """The runs that the file already has.

    Raises:
        UsageError: the file has runs with other settings, or holds something else.
    """
    assert config.json is not None
    if not config.json.exists():
        return []
    try:
        content = json.loads(config.json.read_text())
        runs = [Run.of_json(one) for one in content["runs"]]
        theirs, ours = _flat(content["shared"]), _flat(config.shared())
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"'{config.json}' holds something else than this benchmark's figures") from error
    for name in ours:
        if theirs.get(name) != ours[name]:
            raise UsageError(
                f"'{config.json}' holds runs with {name} {theirs.get(name)}, not {ours[name]}: give another file"
            )
    return runs


# The figures about a target: the name in `Point`, the heading and the format of each.
FIGURES = (
    ("steps", "steps", ",.0f"),
    ("training_seconds", "training s", ".1f"),
    ("cpu_seconds", "CPU s", ".1f"),
    ("seconds_with_evaluation", "s with evaluation", ".1f"),
)


def medians(runs: Sequence[Run], target: float) -> dict[str, float]:
    """The medians over seeds of the steps and seconds until the target. A seed that did not reach it is infinite."""
    points = [run.reached(target) for run in runs]
    return {
        name: median(math.inf if point is None else float(getattr(point, name)) for point in points)
        for name, _, _ in FIGURES
    }


def table(config: BenchmarkConfig, runs: Sequence[Run], target: float) -> Table:
    """A table with one row per seed, and a row of medians."""
    title = f"{config.method}, {config.variant}: mean return of at least {target:g}"
    rows = Table("seed", *(heading for _, heading, _ in FIGURES), "best mean", title=title)
    for found in runs:
        best = f"{max((point.mean for point in found.curve), default=math.nan):.1f}"
        point = found.reached(target)
        values = ["not reached"] if point is None else [f"{getattr(point, name):{spec}}" for name, _, spec in FIGURES]
        rows.add_row(str(found.seed), *values, *[""] * (len(FIGURES) - len(values)), best)
    rows.add_section()
    middle = medians(runs, target)
    shown = [f"{middle[name]:{spec}}" if math.isfinite(middle[name]) else "not reached" for name, _, spec in FIGURES]
    rows.add_row("median", *shown)
    return rows


def write(config: BenchmarkConfig, runs: Sequence[Run], floor: Floor | None = None) -> None:
    """Write the figures so far. A target that was not reached, or a floor that is not yet measured, is null."""
    if config.json is None:
        return
    reached: dict[str, Any] = {}
    for target in config.targets:
        points = {str(found.seed): found.reached(target) for found in runs}
        middle = medians(runs, target)
        reached[f"{target:g}"] = {
            "seeds": {seed: None if point is None else asdict(point) for seed, point in points.items()},
            "median": {name: value if math.isfinite(value) else None for name, value in middle.items()},
        }
    figures = {
        "reached": reached,
        "floor": None if floor is None else asdict(floor),
        "shared": config.shared(),
        "runs": [asdict(found) for found in runs],
    }
    write_json(config.json, config, figures)


def benchmark(config: BenchmarkConfig) -> None:
    """Run the benchmark and print its tables."""
    console = Console()
    runs = [] if config.json is None else finished(config)
    done = {found.seed for found in runs}
    left = [seed for seed in config.seeds if seed not in done]
    if done:
        console.print(f"{config.json} has {len(done)} seeds; {len(left)} of those asked for are left", markup=False)
    with processes(config.workers) as map_seeds:
        for found in map_seeds(partial(train, config), left):
            runs = sorted([*runs, found], key=lambda one: one.seed)
            write(config, runs)
    for target in config.targets:
        console.print(table(config, runs, target))
    console.print("training s and CPU s leave evaluations out")
    floor = floor_of(config.training(0))
    over = [run.curve[-1].training_seconds / run.curve[-1].steps / floor.seconds_per_step for run in runs if run.curve]
    console.print(f"{floor.text()}; training took {median(over):.1f} times the floor" if over else floor.text())
    write(config, runs, floor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.time_to_return")


if __name__ == "__main__":
    sys.exit(main())
