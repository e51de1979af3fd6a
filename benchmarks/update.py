"""`python -m benchmarks.update`: the cost of one balanced update, relative to plain PyTorch.

Every case takes the gradient of the same temporal-difference losses (double Q-learning, Huber) of the same Q-network
(256 and 128 hidden units, the task's embedding among its inputs) on batches of the same size, and a step of Adam:

* "plain": PyTorch alone, `losses.sum().backward()` and `torch.optim.Adam`;
* the names of balancers: the update of `agents.MultiTaskDQN`, which is the code that trains. "aim" updates its policy
  every 10 updates, as `experiments.aim` does, and "aim_every_step" in every update, each time on a newly drawn held-out
  batch;
* "torchjd_pcgrad": TorchJD's PCGrad in the fastest way that TorchJD offers for these losses;
* "torchjd_autogram": TorchJD's other way to PCGrad, which never forms the Jacobian;
* "sb3_dqn": `stable_baselines3.DQN.train` with a batch of the same T * B transitions, without balancing. It also draws
  its batch and clips the gradient, and it has no double Q-learning.

The cases take turns in rounds, so that a change in the machine's speed affects all of them alike. Each figure is the
median over rounds, with one torch thread. The floor is the time of the matrix products alone at the speed of a large
product, measured in the same run. With `--device cuda`, all cases work on the GPU, and there is no floor.

`--algorithm sac` times the update of a soft actor-critic instead, relative to that of Stable-Baselines3; the cases are
described in `benchmarks/actor_critic.py`, and there is no floor.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import spaces
from rich.console import Console
from rich.table import Table
from stable_baselines3 import DQN
from stable_baselines3.common.logger import Logger
from torch import Tensor

from agents import MultiTaskDQN, SharedQNetwork, TaskBatch
from benchmarks import actor_critic
from benchmarks.common import (
    NO_TORCHJD,
    Floor,
    TurnsConfig,
    bytes_of_update,
    ceilings,
    flops_of_update,
    has_torchjd,
    interleaved,
    median_ratio,
    torchjd_pcgrad,
    write_json,
)
from benchmarks.noise import EMBEDDING, HIDDEN, LEARNING_RATE, STATE, environment, sb3_update
from experiments.program.command import run
from mtrl.balancers import names
from mtrl.limits import check_number
from mtrl.rl.td_loss import TDLoss

ACTIONS, GAMMA = 4, 0.99


@dataclass(frozen=True)
class BenchmarkConfig(TurnsConfig):
    """Time one update of every balancer against plain PyTorch, TorchJD and Stable-Baselines3, in turns."""

    tasks: int = 3
    """Number of tasks T."""

    batch_size: int = 64
    """Transitions per task, B."""

    seconds: float = 40.0
    """Approximate measured time."""

    rounds: int = 25
    """Number of turns that every case has. A turn has as many updates as the seconds allow."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where all cases work."""

    algorithm: Literal["dqn", "sac"] = "dqn"
    """Whose updates are timed: Q-learning's, relative to plain PyTorch, or a soft actor-critic's, relative to SB3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda'; PyTorch finds no GPU here")
        for name in ("tasks", "batch_size"):
            check_number(name, getattr(self, name), least=1, whole=True)


def balanced_update(
    tasks: int, batch_size: int, device: str, balancer: str, **balancer_kwargs: Any
) -> Callable[[], None]:
    """The update of `agents.MultiTaskDQN` with this balancer."""
    agent = MultiTaskDQN(
        "MlpPolicy",
        environment(tasks, spaces.Discrete(ACTIONS)),
        balancer,
        balancer_kwargs,
        learning_rate=LEARNING_RATE,
        learning_rate_decay=0,
        huber_delta=1.0,
        memory_angle=0.0,  # the plain update has none
        batch_size=batch_size,
        learning_starts=10**9,
        guidance_share=0.5,
        policy_kwargs={"embedding_dim": EMBEDDING, "net_arch": HIDDEN, "layer_norm": False},
        device=device,
        seed=0,
    )
    agent.set_logger(Logger(None, []))
    agent.learn(400 * tasks)  # fills the replays without an update
    batch = agent.replay_buffer.sample(batch_size)
    if agent.guidance_buffer is not None:
        agent.update.guide()

    def update() -> None:
        agent.update(batch, agent._n_updates % agent.settings.conflict_interval == 0)
        agent._n_updates += 1

    return update


class PlainLearner:
    """An online and a target network with one batch, as a user without this project would write them."""

    def __init__(self, tasks: int, batch_size: int, device: str) -> None:
        torch.manual_seed(0)
        sizes = (STATE + tasks, ACTIONS, tasks, EMBEDDING, HIDDEN, False)
        self.tasks = tasks
        self.online, self.target = SharedQNetwork(*sizes).to(device), SharedQNetwork(*sizes).to(device)
        self.target.requires_grad_(False)
        rows = tasks * batch_size
        one_hot = torch.eye(tasks).repeat_interleave(batch_size, 0)
        before, after = (torch.cat((torch.randn(rows, STATE), one_hot), 1) for _ in range(2))
        actions, rewards, discounts = torch.randint(ACTIONS, (rows,)), torch.randn(rows), torch.full((rows,), GAMMA)
        self.batch = TaskBatch(*(part.to(device) for part in (before, after, actions, rewards, discounts)))
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=LEARNING_RATE)

    def losses(self) -> Tensor:
        """Mean Huber loss per task, (T,), against double Q-learning targets."""
        batch = self.batch
        with torch.no_grad():
            chosen = self.online(batch.next_observations).argmax(1, keepdim=True)
            best = self.target(batch.next_observations).gather(1, chosen).squeeze(1)
            targets = batch.rewards + batch.discounts * best
        return TDLoss(self.tasks)(self.online(batch.observations), batch.actions, targets)


def plain_update(tasks: int, batch_size: int, device: str) -> Callable[[], None]:
    """The update with the sum of the losses, by PyTorch alone."""
    learner = PlainLearner(tasks, batch_size, device)

    def update() -> None:
        learner.optimizer.zero_grad()
        learner.losses().sum().backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()

    return update


def torchjd_update(tasks: int, batch_size: int, device: str) -> Callable[[], None]:
    """PCGrad by TorchJD's `backward` and `jac_to_grad`, with the Gramian computed in the fastest way."""
    learner = PlainLearner(tasks, batch_size, device)
    fill_gradients = torchjd_pcgrad(list(learner.online.parameters()), optimize_gramian_computation=True)

    def update() -> None:
        learner.optimizer.zero_grad()
        fill_gradients(learner.losses())
        learner.optimizer.step()

    return update


def autogram_update(tasks: int, batch_size: int, device: str) -> Callable[[], None]:
    """PCGrad by TorchJD's `autogram`: the Gramian without the Jacobian, then a weighted backward pass."""
    from torchjd.aggregation import PCGradWeighting  # noqa: PLC0415 - TorchJD is optional
    from torchjd.autogram import Engine  # noqa: PLC0415

    learner, pcgrad = PlainLearner(tasks, batch_size, device), PCGradWeighting()
    engine = Engine(learner.online, batch_dim=None)

    def update() -> None:
        losses = learner.losses()
        coefficients = pcgrad(engine.compute_gramian(losses))
        learner.optimizer.zero_grad()
        losses.backward(coefficients)  # type: ignore[no-untyped-call]
        learner.optimizer.step()

    return update


def make_cases(config: BenchmarkConfig) -> dict[str, Callable[[], None]]:
    """All cases that take turns. The first one is what the others are compared with."""
    sizes = (config.tasks, config.batch_size, config.device)
    if config.algorithm == "sac":
        return actor_critic.make_cases(*sizes)
    cases = {"plain": plain_update(*sizes)}
    for name in names():
        settings: dict[str, Any] = {"policy_interval": 10} if name == "aim" else {}
        cases[name] = balanced_update(*sizes, name, **settings)
    cases["aim_every_step"] = balanced_update(*sizes, "aim", policy_interval=1)
    if has_torchjd():
        cases |= {"torchjd_pcgrad": torchjd_update(*sizes), "torchjd_autogram": autogram_update(*sizes)}
    return cases | {"sb3_dqn": sb3_update(DQN, spaces.Discrete(ACTIONS), *sizes)}


def benchmark(config: BenchmarkConfig) -> None:
    """Run the benchmark and print its table."""
    torch.set_num_threads(1)
    console = Console()
    if not has_torchjd():
        console.print(NO_TORCHJD)
    cases = make_cases(config)
    ceiling = ceilings()
    trial = sum(median[0] for median in interleaved(cases, 1, 3, config.device).values())  # seconds for one of each
    updates = max(round(config.seconds / (config.rounds + 1) / trial), 1)
    seconds = interleaved(cases, config.rounds, updates, config.device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(cases))
    ratio = {name: median_ratio(values, seconds[first]) for name, values in seconds.items()}
    sizes, rows = (STATE + EMBEDDING, *HIDDEN, ACTIONS), config.tasks * config.batch_size
    floor = Floor.at(ceiling, flops_of_update(sizes, rows, double_q=True), bytes_of_update(sizes, rows))
    least = floor.seconds_per_step
    place = f"T = {config.tasks}, B = {config.batch_size}, on {config.device}"
    title = f"{place}: medians of {config.rounds} rounds of {updates} updates"
    table = Table("update", "microseconds", f"relative to {first}", title=title)
    if has_floor := config.device == "cpu" and config.algorithm == "dqn":  # that of one core of the CPU
        table.add_column("times the floor")
    for name in cases:
        times_floor = [f"{median[name] / least:.1f}"] if has_floor else []
        table.add_row(name, f"{1e6 * median[name]:.0f}", f"{ratio[name]:.2f}", *times_floor)
    console.print(table)
    if has_floor:
        console.print(floor.text("update"))
    if config.json is not None:
        figures: dict[str, Any] = {f"ratio_to_{first}": ratio, "seconds": median, "ceilings": vars(ceiling)}
        figures |= {"floor_seconds": least} if has_floor else {}
        write_json(config.json, config, figures)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.update")


if __name__ == "__main__":
    sys.exit(main())
