"""`python -m benchmarks.training`: environment steps per second of whole training runs, at equal work.

All cases learn the three tasks from 3 x 4 columns of one vector environment. Observations are blind, so that the
network 8 -> 256 -> 128 -> 4 is the same in all cases. There are 4 updates of 3 x 64 = 192 transitions per vector step
from the first step on. The replay size is the same, as are one-step transitions, Huber loss, single Q-learning,
gradient clipping, a constant epsilon, and one target update per vector step. The cases differ in the code:

* "ours equal", "ours pcgrad": `agents.MultiTaskDQN` with that balancer;
* "SB3 DQN": the unchanged `stable_baselines3.DQN` on one batch of 192, without balancing;
* "SB3 DQN + TorchJD PCGrad": `TorchJDDQN`, which a user of both libraries would write, with TorchJD's fastest way to
  these gradients: one forward pass for all tasks, `parallel_chunk_size=1`, `optimize_gramian_computation=True`;
* "ours, default settings": `MultiTaskDQN` with its defaults (task-aware, double Q-learning, and so on). It shows the
  share of collection in a run's time; collection is everything except `train`.

The cases take turns in rounds of equally many steps, so that a change in the machine's speed affects all of them alike.
Figures are medians over rounds, and a ratio is taken within each round. There is one torch thread. The floor is the
time of the updates' matrix products alone at the speed of a large product, measured in the same run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from agents import MultiTaskDQN
from benchmarks.common import (
    NO_TORCHJD,
    Floor,
    TurnsConfig,
    bytes_of_update,
    has_torchjd,
    median_ratio,
    progress_bar,
    torchjd_pcgrad,
    write_json,
)
from envs import make_task_vec_env
from experiments.program.command import run
from mtrl.limits import check_number

TASKS, COLUMNS, BATCH = 3, 4, 64
ENVIRONMENTS = TASKS * COLUMNS
OURS, OURS_PCGRAD, SB3, SB3_TORCHJD = "ours equal", "ours pcgrad", "SB3 DQN", "SB3 DQN + TorchJD PCGrad"
DEFAULTS = "ours, default settings"
WARM_UP = 50 * ENVIRONMENTS  # steps
ALIKE: dict[str, Any] = {
    "learning_rate": 5e-4,
    "buffer_size": 160_000,
    "learning_starts": 0,
    "tau": 0.02,
    "gradient_steps": 4,
    "train_freq": 1,
    "exploration_initial_eps": 0.05,
    "exploration_final_eps": 0.05,
    "max_grad_norm": 10.0,
    "policy_kwargs": {"net_arch": [256, 128]},
    "device": "cpu",
}


@dataclass(frozen=True)
class BenchmarkConfig(TurnsConfig):
    """Measure training steps per second against Stable-Baselines3, alone and with TorchJD, at equal work.

    Every case has the same network, the same batch size and the same number of updates per environment step. The cases
    take turns. Ratios above 1 mean that this project is faster. The first lines of benchmarks/training.py list all that
    is equal.
    """

    seed: int = 0
    """Seed of environments and agents."""

    side_by_side: bool = False
    """Also compare two runs with default settings, in two processes at once, with one run alone. This takes as many
    seconds again."""

    def __post_init__(self) -> None:
        check_number("seed", self.seed, least=0, whole=True)
        super().__post_init__()


class TorchJDDQN(DQN):
    """Stable-Baselines3's DQN with one loss per task, combined by TorchJD's PCGrad."""

    replay_buffer: ReplayBuffer

    def train(self, gradient_steps: int, batch_size: int = TASKS * BATCH) -> None:
        """Train as `DQN.train` does, except that there is one loss per task, and PCGrad combines their gradients."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        fill_gradients = torchjd_pcgrad(list(self.q_net.parameters()), optimize_gramian_computation=True)
        means = []
        for _ in range(gradient_steps):
            losses = self.task_losses(self.sample(batch_size // TASKS))
            means.append(losses.mean().item())
            self.policy.optimizer.zero_grad()
            fill_gradients(losses)
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(means))

    def task_losses(self, batch: ReplayBufferSamples) -> Tensor:
        """The mean Huber loss of each task (T,) on a task-major batch. Their mean is the loss of `DQN.train`."""
        with torch.no_grad():
            best = self.q_net_target(batch.next_observations).max(dim=1, keepdim=True).values
            targets = batch.rewards + (1 - batch.dones) * self.gamma * best
        values = self.q_net(batch.observations).gather(1, batch.actions.long())
        return F.smooth_l1_loss(values, targets, reduction="none").view(TASKS, -1).mean(1)

    def sample(self, each: int) -> ReplayBufferSamples:
        """Draw `each` transitions of every task from the task's columns. The batch is task-major."""
        replay = self.replay_buffer
        rows = np.random.randint(replay.size(), size=TASKS * each)
        columns = np.repeat(np.arange(TASKS) * COLUMNS, each) + np.random.randint(COLUMNS, size=TASKS * each)
        ended = replay.dones[rows, columns] * (1 - replay.timeouts[rows, columns])  # a time limit is not an end
        return ReplayBufferSamples(
            observations=replay.to_torch(replay.observations[rows, columns]),
            actions=replay.to_torch(replay.actions[rows, columns]),
            next_observations=replay.to_torch(replay.next_observations[rows, columns]),
            dones=replay.to_torch(ended.reshape(-1, 1)),
            rewards=replay.to_torch(replay.rewards[rows, columns].reshape(-1, 1)),
        )


class Case:
    """A training run that is advanced by some steps at a time. Its clocks run only during these steps.

    Attributes:
        agent: the agent that learns.
        seconds: the seconds that its steps have taken since the clocks started.
    """

    def __init__(self, agent: MultiTaskDQN | DQN) -> None:
        agent.set_logger(Logger(None, []))  # otherwise `learn` creates a folder at every call
        self.agent = agent
        self._clock = CollectionClock()
        self.start_clocks()

    @property
    def steps(self) -> int:
        """The number of environment steps so far, over all columns."""
        return self.agent.num_timesteps

    @property
    def collecting(self) -> float:
        """The part of `seconds` outside `train`."""
        return self._clock.seconds

    @property
    def parameters(self) -> int:
        """The number of parameters of the online network."""
        return sum(parameter.numel() for parameter in self.agent.policy.q_net.parameters())

    @property
    def updates(self) -> int:
        """The number of gradient steps so far."""
        return self.agent._n_updates

    @property
    def updates_per_step(self) -> float:
        """Gradient steps per environment step since the clocks started."""
        steps, updates = self._start
        return (self.updates - updates) / (self.steps - steps)

    def start_clocks(self) -> None:
        """Set all clocks to 0."""
        self.seconds = self._clock.seconds = 0.0
        self._start = self.steps, self.updates

    def advance(self, steps: int) -> float:
        """Learn for `steps` more environment steps, and return the seconds that they took."""
        torch.set_flush_denormal(False)  # the default of a process; `MultiTaskDQN.learn` turns it on
        start = time.perf_counter()
        self.agent.learn(steps, callback=self._clock, log_interval=10, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return seconds


class CollectionClock(BaseCallback):
    """Adds up the time between the starts and the ends of rollouts. The rest of `learn` is `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._start = 0.0

    def _on_rollout_start(self) -> None:
        self._start = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.seconds += time.perf_counter() - self._start

    def _on_step(self) -> bool:
        return True


def equal_work(seed: int) -> dict[str, Case]:
    """The cases that are compared. TorchJD's case is left out if TorchJD is not installed."""
    # SB3 updates its target network at most once per vector step. Ours does so at every 4th update, just as often.
    ours = ALIKE | {
        "batch_size": BATCH,
        "learning_rate_decay": 0.0,
        "exploration_diversity": 0.0,
        "target_update_interval": ALIKE["gradient_steps"],
        "double_q": False,
        "n_step": 1,
        "huber_delta": 1.0,
        "memory_angle": 0.0,
        "policy_kwargs": {"net_arch": [256, 128], "layer_norm": False},
        "seed": seed,
    }
    theirs = ALIKE | {"batch_size": TASKS * BATCH, "target_update_interval": ENVIRONMENTS, "seed": seed}

    def env() -> Any:
        return make_task_vec_env(envs_per_task=COLUMNS, seed=seed, variant="blind")

    agents: dict[str, MultiTaskDQN | DQN] = {
        OURS: MultiTaskDQN("MlpPolicy", env(), balancer="equal", **ours),
        OURS_PCGRAD: MultiTaskDQN("MlpPolicy", env(), balancer="pcgrad", **ours),
        SB3: DQN("MlpPolicy", env(), **theirs),
    }
    if has_torchjd():
        agents[SB3_TORCHJD] = TorchJDDQN("MlpPolicy", env(), **theirs)
    return {name: Case(agent) for name, agent in agents.items()}


def with_defaults(seed: int) -> Case:
    """`MultiTaskDQN` with its defaults, except that updates begin with the first step."""
    env = make_task_vec_env(envs_per_task=COLUMNS, seed=seed)
    return Case(MultiTaskDQN("MlpPolicy", env, learning_starts=0, seed=seed, device="cpu"))


def take_turns(cases: dict[str, Case], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Measure for about `seconds`, after a warm-up: for each case, the seconds per environment step in each round."""
    per_step = sum(case.advance(WARM_UP) for case in cases.values()) / WARM_UP
    for case in cases.values():
        case.start_clocks()
    vector_steps = max(1, round(seconds / rounds / per_step / ENVIRONMENTS))
    steps = vector_steps * ENVIRONMENTS
    figures: dict[str, list[float]] = {name: [] for name in cases}
    with progress_bar() as progress:
        bar = progress.add_task(f"{rounds} rounds of {steps:,} steps", total=rounds * len(cases))
        for _ in range(rounds):
            for name, case in cases.items():
                figures[name].append(case.advance(steps) / steps)
                progress.advance(bar)
    return figures


@dataclass(frozen=True)
class SideBySide:
    """The speed of two processes at once and of one alone, in environment steps per second."""

    alone: float
    together: float
    ratio: float


def side_by_side(seconds: float, rounds: int, seed: int) -> SideBySide:
    """Measure one run alone and two runs at once in turns, for about `seconds`."""
    context = get_context("spawn")
    pipes = []
    for number in range(2):
        ours, theirs = context.Pipe()
        context.Process(target=_run_on_request, args=(theirs, seed + number), daemon=True).start()
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


def _run_on_request(pipe: Connection[float, float], seed: int) -> None:
    """Train in a process of its own: for each number of seconds that arrives, send the steps per second."""
    torch.set_num_threads(1)
    case = with_defaults(seed)
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
    compared = equal_work(config.seed)
    cases = compared | {DEFAULTS: with_defaults(config.seed)}
    figures = take_turns(cases, config.seconds, config.rounds)
    speed = {name: median(1 / seconds for seconds in values) for name, values in figures.items()}
    share = {name: case.collecting / case.seconds for name, case in cases.items()}
    updates_per_step = {name: case.updates_per_step for name, case in cases.items()}

    updates = ALIKE["gradient_steps"]
    title = f"{updates} updates of {TASKS} x {BATCH} transitions per {ENVIRONMENTS} steps"
    table = Table("case", "steps/s", "to SB3 DQN", "collection", title=title)
    for name in cases:
        if name == DEFAULTS:
            table.add_section()
        compare = f"{ratio(figures, name, SB3):.2f}" if name in compared else ""
        table.add_row(name, f"{speed[name]:,.0f}", compare, f"{share[name]:.0%}")
    console.print(table)

    to_sb3, to_torchjd = ratio(figures, OURS, SB3), ratio(figures, OURS_PCGRAD, SB3_TORCHJD)
    console.print(f"{OURS} is {to_sb3:.2f} times as fast as {SB3}")
    if to_torchjd is not None:
        console.print(f"{OURS_PCGRAD} is {to_torchjd:.2f} times as fast as {SB3_TORCHJD}")
    console.print(f"collection takes {share[DEFAULTS]:.0%} of the time at the default settings")
    moved = bytes_of_update((8, *ALIKE["policy_kwargs"]["net_arch"], 4), TASKS * BATCH)
    floor = Floor.of(lambda: cases[OURS].agent.train(1, BATCH), moved, updates / ENVIRONMENTS)
    over = {name: median(values) / floor.seconds_per_step for name, values in figures.items() if name in compared}
    console.print(
        f"{floor.text()}; {', '.join(f'{name} takes {times:.1f} times the floor' for name, times in over.items())}"
    )
    pair = side_by_side(config.seconds, config.rounds, config.seed) if config.side_by_side else None
    if pair is not None:
        console.print(
            f"two processes at once make {pair.together:,.0f} steps/s, {pair.ratio:.2f} times the {pair.alone:,.0f} "
            "of one alone"
        )
    if config.json is not None:
        content = {
            "steps_per_second": speed,
            "ratio_to_sb3": to_sb3,
            "ratio_to_sb3_torchjd": to_torchjd,
            "floor": asdict(floor),
            "times_floor": over,
            "collection_share": share[DEFAULTS],
            "collection_share_of_each": share,
            "updates_per_step": updates_per_step,
            "parameters": {name: case.parameters for name, case in cases.items()},
            "side_by_side": None if pair is None else asdict(pair),
        }
        write_json(config.json, config, content)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.training")


if __name__ == "__main__":
    sys.exit(main())
