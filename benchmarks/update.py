"""`python -m benchmarks.update`: what one balanced update costs, relative to plain PyTorch.

Every case takes the gradient of the same temporal-difference losses (double Q-learning, Huber) of the same Q-network
(256 and 128 hidden units, the task's embedding among its inputs) on batches of the same size, and a step of Adam:

* "plain": what one writes without this project, `losses.sum().backward()` and `torch.optim.Adam`;
* balancers by name: the update of `agents.MultiTaskDQN`, the code that trains. "aim" takes a step of its policy every
  10 updates, as `experiments.aim` does, and "aim_every_step" in every update, each on a freshly drawn held-out batch;
* "torchjd_pcgrad": TorchJD's PCGrad in the fastest way that it offers for these losses, and "torchjd_autogram", its
  other way, which never forms the Jacobian;
* "sb3_dqn": `stable_baselines3.DQN.train` with a batch of the same T * B transitions, which balances nothing. It draws
  its batch, clips the gradient, and knows no double Q-learning.

The cases take turns in rounds, so that a change in the machine's speed meets all of them, and each figure is the median
over rounds. One torch thread. The floor is what the matrix products alone would take at the speed of a large product,
measured in the same run.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from stable_baselines3 import DQN
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from agents import MultiTaskDQN, SharedQNetwork, TaskBatch
from benchmarks.common import (
    NO_TORCHJD,
    bytes_of_update,
    ceilings,
    flops_of_update,
    has_torchjd,
    interleaved,
    write_json,
)
from envs import TaskOneHot
from experiments.program.command import run
from mtrl.balancers import names
from mtrl.rl.update import TDLoss

STATE, ACTIONS, EMBEDDING, HIDDEN = 8, 4, 8, (256, 128)
LEARNING_RATE, GAMMA = 5e-4, 0.99


@dataclass(frozen=True)
class BenchmarkConfig:
    """Time one update of every balancer against plain PyTorch, TorchJD and Stable-Baselines3, in turns."""

    tasks: int = 3
    """T."""

    batch_size: int = 64
    """Transitions per task."""

    seconds: float = 40.0
    """About how long to measure."""

    rounds: int = 25
    """Times that every case has its turn; a turn is as many updates as the seconds allow."""

    json: Path | None = None
    """Write the figures to this file as well."""

    def __post_init__(self) -> None:
        for name in ("tasks", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds}; it must be above 0")


class Noise(gymnasium.Env[Any, Any]):
    """States and rewards at random: an update does not ask where its numbers come from."""

    observation_space = spaces.Box(-np.inf, np.inf, (STATE,))
    action_space = spaces.Discrete(ACTIONS)

    def __init__(self, task: int) -> None:
        self.task = f"task{task}"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new state."""
        super().reset(seed=seed)
        return self.np_random.standard_normal(STATE).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Another new state; one episode in a hundred ends."""
        state = self.np_random.standard_normal(STATE).astype(np.float32)
        return state, float(self.np_random.standard_normal()), bool(self.np_random.random() < 0.01), False, {}


def environment(tasks: int) -> DummyVecEnv:
    """One column per task, whose observations end with the task's one-hot."""
    return DummyVecEnv([lambda task=task: TaskOneHot(Noise(task), task, tasks) for task in range(tasks)])  # type: ignore[misc]


def balanced_update(tasks: int, batch_size: int, balancer: str, **balancer_kwargs: Any) -> Callable[[], None]:
    """The update of `agents.MultiTaskDQN`."""
    agent = MultiTaskDQN(
        "MlpPolicy",
        environment(tasks),
        balancer,
        balancer_kwargs,
        learning_rate=LEARNING_RATE,
        learning_rate_decay=0,
        huber_delta=1.0,
        batch_size=batch_size,
        learning_starts=10**9,
        guidance_share=0.5,
        policy_kwargs={"embedding_dim": EMBEDDING, "net_arch": HIDDEN, "layer_norm": False},
        device="cpu",
        seed=0,
    )
    agent.set_logger(Logger(None, []))
    agent.learn(400 * tasks)  # no update, but full replays
    batch = agent.replay_buffer.sample(batch_size)
    if agent.guidance_buffer is not None:
        agent.update.guide()

    def update() -> None:
        agent.update(batch, agent._n_updates % agent.settings.conflict_interval == 0)
        agent._n_updates += 1

    return update


class PlainLearner:
    """Online and target network with one batch: what a user without this project writes."""

    def __init__(self, tasks: int, batch_size: int) -> None:
        torch.manual_seed(0)
        sizes = (STATE + tasks, ACTIONS, tasks, EMBEDDING, HIDDEN, False)
        self.tasks = tasks
        self.online, self.target = SharedQNetwork(*sizes), SharedQNetwork(*sizes)
        self.target.requires_grad_(False)
        rows = tasks * batch_size
        one_hot = torch.eye(tasks).repeat_interleave(batch_size, 0)
        before, after = (torch.cat((torch.randn(rows, STATE), one_hot), 1) for _ in range(2))
        self.batch = TaskBatch(
            before, after, torch.randint(ACTIONS, (rows,)), torch.randn(rows), torch.full((rows,), GAMMA)
        )
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=LEARNING_RATE)

    def losses(self) -> Tensor:
        """Mean Huber loss per task, (T,), against double Q-learning targets."""
        batch = self.batch
        with torch.no_grad():
            chosen = self.online(batch.next_observations).argmax(1, keepdim=True)
            best = self.target(batch.next_observations).gather(1, chosen).squeeze(1)
            targets = batch.rewards + batch.discounts * best
        return TDLoss(self.tasks)(self.online(batch.observations), batch.actions, targets)


def plain_update(tasks: int, batch_size: int) -> Callable[[], None]:
    """The sum of the losses, by PyTorch alone."""
    learner = PlainLearner(tasks, batch_size)

    def update() -> None:
        learner.optimizer.zero_grad()
        learner.losses().sum().backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()

    return update


def torchjd_update(tasks: int, batch_size: int) -> Callable[[], None]:
    """PCGrad by TorchJD's `backward` and `jac_to_grad`."""
    from torchjd.aggregation import PCGrad  # noqa: PLC0415 - optional
    from torchjd.autojac import backward, jac_to_grad  # noqa: PLC0415

    learner, pcgrad = PlainLearner(tasks, batch_size), PCGrad()
    weights = list(learner.online.parameters())

    def update() -> None:
        learner.optimizer.zero_grad()
        # One task at a time, and PCGrad on the Gramian, are the fastest here of what it lets one choose.
        backward(learner.losses(), inputs=weights, parallel_chunk_size=1)
        jac_to_grad(weights, pcgrad, optimize_gramian_computation=True)
        learner.optimizer.step()

    return update


def autogram_update(tasks: int, batch_size: int) -> Callable[[], None]:
    """PCGrad by TorchJD's `autogram`: the Gramian without the Jacobian, then a weighted backward pass."""
    from torchjd.aggregation import PCGradWeighting  # noqa: PLC0415 - optional
    from torchjd.autogram import Engine  # noqa: PLC0415

    learner, pcgrad = PlainLearner(tasks, batch_size), PCGradWeighting()
    engine = Engine(learner.online, batch_dim=None)

    def update() -> None:
        losses = learner.losses()
        coefficients = pcgrad(engine.compute_gramian(losses))
        learner.optimizer.zero_grad()
        losses.backward(coefficients)  # type: ignore[no-untyped-call]
        learner.optimizer.step()

    return update


def sb3_update(tasks: int, batch_size: int) -> Callable[[], None]:
    """`DQN.train` of Stable-Baselines3, one update on as many transitions."""
    agent = DQN(
        "MlpPolicy",
        environment(tasks),
        learning_rate=LEARNING_RATE,
        buffer_size=1_000 * tasks,
        learning_starts=10**9,
        policy_kwargs={"net_arch": list(HIDDEN)},
        device="cpu",
        seed=0,
    )
    agent.set_logger(Logger(None, []))
    agent.learn(400 * tasks)
    return lambda: agent.train(1, tasks * batch_size)


def make_cases(config: BenchmarkConfig) -> dict[str, Callable[[], None]]:
    """All that take turns, "plain" first."""
    sizes = (config.tasks, config.batch_size)
    cases = {"plain": plain_update(*sizes)}
    for name in names():
        cases[name] = balanced_update(*sizes, name, **({"policy_interval": 10} if name == "aim" else {}))
    cases["aim_every_step"] = balanced_update(*sizes, "aim", policy_interval=1)
    if has_torchjd():
        cases |= {"torchjd_pcgrad": torchjd_update(*sizes), "torchjd_autogram": autogram_update(*sizes)}
    return cases | {"sb3_dqn": sb3_update(*sizes)}


def benchmark(config: BenchmarkConfig) -> None:
    """Run and print."""
    torch.set_num_threads(1)
    console = Console()
    if not has_torchjd():
        console.print(NO_TORCHJD)
    cases = make_cases(config)
    ceiling = ceilings()
    trial = sum(median[0] for median in interleaved(cases, 1, 3).values())  # seconds for one update of each
    updates = max(round(config.seconds / (config.rounds + 1) / trial), 1)
    seconds = interleaved(cases, config.rounds, updates)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    # The ratio of each round is free of drift between rounds.
    ratio = {
        name: statistics.median(mine / plain for mine, plain in zip(values, seconds["plain"], strict=True))
        for name, values in seconds.items()
    }
    sizes = (STATE + EMBEDDING, *HIDDEN, ACTIONS)
    flops = flops_of_update(sizes, config.tasks * config.batch_size, double_q=True)
    floor = flops / ceiling.gflops / 1e9
    title = f"T = {config.tasks}, B = {config.batch_size}: medians of {config.rounds} rounds of {updates} updates"
    table = Table("update", "microseconds", "relative to plain", "times the floor", title=title)
    for name in cases:
        table.add_row(name, f"{1e6 * median[name]:.0f}", f"{ratio[name]:.2f}", f"{median[name] / floor:.1f}")
    console.print(table)
    moved = bytes_of_update(sizes, config.tasks * config.batch_size)
    console.print(
        f"floor: {1e6 * floor:.0f} microseconds for {flops / 1e6:.1f} million floating-point operations at "
        f"{ceiling.gflops:.0f} per nanosecond; moving {moved / 1e6:.1f} MB at {ceiling.gbytes_per_second:.0f} GB/s "
        f"would take {1e-3 * moved / ceiling.gbytes_per_second:.0f}, but they stay in the caches"
    )
    if config.json is not None:
        figures = {"ratio_to_plain": ratio, "seconds": median, "floor_seconds": floor, "ceilings": vars(ceiling)}
        write_json(config.json, config, figures)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.update")


if __name__ == "__main__":
    sys.exit(main())
