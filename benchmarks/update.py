"""`python -m benchmarks.update`: what one balanced update costs, relative to plain PyTorch.

Every method takes the same temporal-difference losses (double Q-learning, Huber) of the agents' shared Q-network on the
same batch of 3 x 64 transitions. "plain" is what one writes without this project: `losses.sum().backward()` and
`torch.optim.Adam`. The methods take turns in rounds, so that a change in the machine's speed meets all of them, and
each figure is the median over rounds. One torch thread.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from agents import SharedQNetwork, TaskBatch
from experiments.cli import run
from mtrl.balancers import make_balancer, names
from mtrl.gradients import TaskMajorEngine

TASKS, STATE, ACTIONS = 3, 8, 4


@dataclass(frozen=True)
class BenchmarkConfig:
    """Time one update of every balancer against plain PyTorch, in one interleaved run."""

    batch_size: int = 64
    """Transitions per task."""

    rounds: int = 30
    """Times that every method has its turn."""

    updates: int = 50
    """Updates per turn."""

    json: Path | None = None
    """Write the figures to this file as well."""


class Learner:
    """Online and target network with one fixed batch."""

    def __init__(self, batch: TaskBatch) -> None:
        torch.manual_seed(0)
        self.batch = batch
        self.online, self.target = (SharedQNetwork(STATE + TASKS, ACTIONS, TASKS) for _ in range(2))
        self.target.requires_grad_(False)

    def targets(self) -> Tensor:
        """Double Q-learning targets (T * B,)."""
        with torch.no_grad():
            chosen = self.online(self.batch.next_observations).argmax(1, keepdim=True)
            best = self.target(self.batch.next_observations).gather(1, chosen).squeeze(1)
            targets: Tensor = self.batch.rewards + self.batch.discounts * best
            return targets

    def losses(self, targets: Tensor) -> Tensor:
        """Mean Huber loss per task, (T,)."""
        values = self.online(self.batch.observations).gather(1, self.batch.actions.unsqueeze(1)).squeeze(1)
        return F.smooth_l1_loss(values, targets, reduction="none").view(TASKS, -1).mean(1)


def plain_update(batch: TaskBatch, fused: bool) -> Callable[[], None]:
    """The update that one writes without this project."""
    learner = Learner(batch)
    optimizer = torch.optim.Adam(learner.online.parameters(), lr=5e-4, fused=fused)

    def update() -> None:
        optimizer.zero_grad()
        learner.losses(learner.targets()).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return update


def balanced_update(batch: TaskBatch, balancer_name: str) -> Callable[[], None]:
    """The update of `agents.MultiTaskDQN`."""
    learner = Learner(batch)
    engine = TaskMajorEngine(learner.online, TASKS, learner.online.last_shared_layer)
    weights = engine.layout.flatten_()
    optimizer = torch.optim.Adam([weights], lr=5e-4, fused=True)
    balancer = make_balancer(balancer_name, TASKS)

    def update() -> None:
        targets = learner.targets()
        with engine.record():
            losses = learner.losses(targets)
        gradients = engine.backward(losses)
        with torch.no_grad():
            weights.grad = balancer(gradients, losses.detach()).update(gradients)
        optimizer.step()

    return update


def interleaved(cases: dict[str, Callable[[], None]], rounds: int, updates: int) -> dict[str, list[float]]:
    """Seconds per update of each case, one figure per round."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, update in cases.items():
            start = time.perf_counter()
            for _ in range(updates):
                update()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / updates)
    return seconds


def benchmark(config: BenchmarkConfig) -> None:
    """Run and print."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    rows = TASKS * config.batch_size
    task = torch.eye(TASKS).repeat_interleave(config.batch_size, 0)
    before, after = (torch.cat((torch.randn(rows, STATE, generator=generator), task), 1) for _ in range(2))
    actions = torch.randint(ACTIONS, (rows,), generator=generator)
    rewards = torch.randn(rows, generator=generator)
    batch = TaskBatch(before, after, actions, rewards, torch.full((rows,), 0.99))

    cases = {"plain": plain_update(batch, fused=False), "plain, fused Adam": plain_update(batch, fused=True)}
    cases |= {name: balanced_update(batch, name) for name in names()}
    seconds = interleaved(cases, config.rounds, config.updates)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    # The ratio of each round is free of drift between rounds.
    ratio = {
        name: statistics.median(mine / plain for mine, plain in zip(values, seconds["plain"], strict=True))
        for name, values in seconds.items()
    }
    table = Table("update", "microseconds", "relative to plain", title=f"T = {TASKS}, B = {config.batch_size}")
    for name in cases:
        table.add_row(name, f"{1e6 * median[name]:.0f}", f"{ratio[name]:.2f}")
    Console().print(table)
    if config.json is not None:
        config.json.write_text(json.dumps({"seconds": median, "ratio_to_plain": ratio}, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    return run(benchmark, BenchmarkConfig, argv, prog="benchmarks.update")


if __name__ == "__main__":
    sys.exit(main())
