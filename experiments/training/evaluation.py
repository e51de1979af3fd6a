"""Greedy evaluation of a trained agent on fixed seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from rich.table import Table

from agents import MultiTaskDQN
from envs import make_task_env
from experiments.training.filming import Frame

# Seeds of evaluation episodes. Training environments are seeded with 64-bit numbers from a `SeedSequence`, so that
# these small numbers are not among them. The learning curves and the final evaluation have different seeds, so that a
# curve does not show the final figure in advance.
FINAL_SEED = 10_000
CURVE_SEED = 20_000

SUCCESS_RETURN = 200.0
"""The return from which Gymnasium counts LunarLander as solved."""


@dataclass(frozen=True)
class TaskResult:
    """The returns of the episodes of one task, with their mean, standard deviation and success rate."""

    returns: list[float]
    mean: float
    standard_deviation: float
    success_rate: float

    @classmethod
    def of(cls, returns: Sequence[float]) -> TaskResult:
        """Mean, sample standard deviation (0 for one episode) and share of returns of at least 200."""
        values = np.asarray(returns)
        deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return cls(list(returns), float(values.mean()), deviation, float((values >= SUCCESS_RETURN).mean()))


@dataclass(frozen=True)
class Evaluation:
    """Results by task, their mean over tasks, and the worst task."""

    tasks: dict[str, TaskResult]

    @property
    def mean(self) -> float:
        """Mean over tasks of the mean returns."""
        return float(np.mean([result.mean for result in self.tasks.values()]))

    @property
    def worst_task(self) -> str:
        """The task of the lowest mean return."""
        return min(self.tasks, key=lambda name: self.tasks[name].mean)

    def as_json(self) -> dict[str, Any]:
        """The contents of evaluation.json."""
        worst = {"name": self.worst_task, "mean": self.tasks[self.worst_task].mean}
        return {
            "tasks": {name: asdict(result) for name, result in self.tasks.items()},
            "mean": self.mean,
            "worst_task": worst,
        }

    def table(self, title: str) -> Table:
        """The results as a table for the terminal."""
        table = Table("task", "return", "sd", "success", title=title)
        for name, result in self.tasks.items():
            success = f"{result.success_rate:.0%}"
            table.add_row(name, f"{result.mean:.1f}", f"{result.standard_deviation:.1f}", success)
        table.add_section()
        table.add_row("mean", f"{self.mean:.1f}")
        table.add_row("worst", f"{self.tasks[self.worst_task].mean:.1f}", "", self.worst_task)
        return table


@dataclass(frozen=True)
class Moment:
    """The state of an episode after one of its steps.

    Attributes:
        task: the name of the task.
        episode: the number of the episode, counted from 0.
        step: the number of the step, counted from 1.
        total: the undiscounted return so far.
        over: whether the episode has ended with this step; then `total` is the return of the episode.
        frame: the picture (H, W, 3); None without `render_mode="rgb_array"`.
    """

    task: str
    episode: int
    step: int
    total: float
    over: bool
    frame: Frame | None


def moments(
    agent: MultiTaskDQN, task: str, episodes: int, seed: int, render_mode: str | None = None
) -> Iterator[Moment]:
    """Play greedy episodes of one task with the seeds `seed`, `seed + 1`, ..., and give the moment after every step.

    There is one environment and one observation at a time, so that an episode does not depend on how many are played or
    shown.

    Args:
        agent: the agent that acts.
        task: the name of the task; the agent was trained on it.
        episodes: how many episodes to play.
        seed: the seed of the first episode.
        render_mode: as in Gymnasium: `"human"` opens a window, `"rgb_array"` gives frames. Default: neither.
    """
    env = make_task_env(task, tasks=agent.task_names, variant=agent.variant, render_mode=render_mode)
    try:
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            total, step, over = 0.0, 0, False
            while not over:
                action, _ = agent.predict(observation, deterministic=True)
                observation, reward, terminated, truncated, _ = env.step(int(action))
                total += float(reward)
                step += 1
                over = terminated or truncated
                frame = cast(Frame, env.render()) if render_mode == "rgb_array" else None
                yield Moment(task, episode, step, total, over, frame)
    finally:
        env.close()


def play(agent: MultiTaskDQN, task: str, episodes: int, seed: int) -> list[float]:
    """The returns of greedy episodes of one task; see `moments`."""
    return [moment.total for moment in moments(agent, task, episodes, seed) if moment.over]


def evaluate(agent: MultiTaskDQN, tasks: Sequence[str], episodes: int, seed: int) -> Evaluation:
    """Play `episodes` greedy episodes of each task, with the seeds `seed`, `seed + 1`, ..."""
    return Evaluation({task: TaskResult.of(play(agent, task, episodes, seed)) for task in tasks})
