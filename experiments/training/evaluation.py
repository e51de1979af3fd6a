"""Greedy evaluation of a trained agent on fixed seeds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np
from rich.table import Table

from agents import MultiTaskAlgorithm
from envs import LunarLanderTask
from experiments.program.flags import UsageError
from experiments.program.tasks import get_task
from experiments.training.filming import Frame, as_frame
from mtrl.files import one_line
from mtrl.rl.episodes import long_episode, succeeded
from mtrl.rl.tasks import AnyTask, TaskLike, make_env, solved_at
from mtrl.rl.wrappers import TaskOneHot, as_column, learned_shape

# Seeds of evaluation episodes. Training environments are seeded with 64-bit numbers from a `SeedSequence`, so that
# these small numbers are not among them. The learning curves and the final evaluation have different seeds, so that a
# curve does not show the final figure in advance.
FINAL_SEED = 10_000
CURVE_SEED = 20_000

LONGEST_OUTCOME = 20  # characters


@dataclass(frozen=True)
class TaskResult:
    """The returns of the episodes of one task, with their mean, standard deviation and success rate.

    Attributes:
        returns: the undiscounted return of each episode.
        mean: their mean.
        standard_deviation: their sample standard deviation; 0 for one episode.
        success_rate: the share of successful episodes; None if nothing says what success is.
        solved_at: the return from which an episode is a success; None if there is no such return.
        successes: whether each episode was a success.
    """

    returns: list[float]
    mean: float
    standard_deviation: float
    success_rate: float | None
    solved_at: float | None = None
    successes: tuple[bool | None, ...] = ()

    @classmethod
    def of(
        cls, returns: Sequence[float], successes: Sequence[bool | None] = (), solved_at: float | None = None
    ) -> TaskResult:
        """The result of episodes with these returns."""
        values = np.asarray(returns)
        deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        known = [success for success in successes if success is not None]
        rate = float(np.mean(known)) if known and len(known) == len(returns) else None
        return cls(list(returns), float(values.mean()), deviation, rate, solved_at, tuple(successes))

    def as_json(self) -> dict[str, Any]:
        """What evaluation.json says of the task."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "successes"}


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
            "tasks": {name: result.as_json() for name, result in self.tasks.items()},
            "mean": self.mean,
            "worst_task": worst,
        }

    def table(self, title: str) -> Table:
        """The results as a table for the terminal."""
        table = Table("task", title=title)
        for column in ("return", "sd", "success"):
            table.add_column(column, justify="right")
        for name, result in self.tasks.items():
            success = "-" if result.success_rate is None else f"{result.success_rate:.0%}"
            table.add_row(name, f"{result.mean:.1f}", f"{result.standard_deviation:.1f}", success)
        table.add_section()
        table.add_row("mean", f"{self.mean:.1f}")
        table.add_row(f"worst: {self.worst_task}", f"{self.tasks[self.worst_task].mean:.1f}")
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
        success: whether the episode was a success; None before its end, and if nothing says what success is.
        solved_at: the return from which an episode is a success; None if there is no such return.
        about: a few words on the task, such as `gravity 12.5`; empty if it has none.
        gust: the push from the side as a share of the strongest one, from -1 to 1; 0 if there is none.
        verdict: how the episode ended, such as `landed`, `time up` or `solved`; empty before its end.
    """

    task: str
    episode: int
    step: int
    total: float
    over: bool
    frame: Frame | None
    success: bool | None = None
    solved_at: float | None = None
    about: str = ""
    gust: float = 0.0
    verdict: str = ""


def moments(
    agent: MultiTaskAlgorithm, task: TaskLike, episodes: int, seed: int, render_mode: str | None = None
) -> Iterator[Moment]:
    """Play greedy episodes of one task with the seeds `seed`, `seed + 1`, ..., and give the moment after every step.

    There is one environment and one observation at a time, so that an episode does not depend on how many are played or
    shown.

    Args:
        agent: the agent that acts.
        task: the task, or its name; the agent was trained on it.
        episodes: how many episodes to play.
        seed: the seed of the first episode.
        render_mode: as in Gymnasium: `"human"` opens a window, `"rgb_array"` gives frames. Default: neither.

    Raises:
        UsageError: the environment has other spaces than those that the agent was trained in.
        ValueError: the environment can't be made, or can't be shown in this way.
    """
    task = get_task(task)
    env = task_env(agent, task, render_mode)
    threshold = solved_at(task, env)
    is_lander = isinstance(task, LunarLanderTask)
    about = task.in_words if isinstance(task, LunarLanderTask) else ""
    is_box = isinstance(env.action_space, gymnasium.spaces.Box)
    try:
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            total, step, over = 0.0, 0, False
            infos: list[Mapping[str, Any]] = []
            while not over:
                action, _ = agent.predict(observation, deterministic=True)
                observation, reward, terminated, truncated, info = env.step(action if is_box else int(action))
                infos.append({name: info[name] for name in ("success", "is_success") if name in info})
                total += float(reward)
                step += 1
                if (problem := long_episode(step, task.name)) is not None:
                    print(problem, file=sys.stderr)
                over = terminated or truncated
                frame = as_frame(env.render(), task.name) if render_mode == "rgb_array" else None
                success = succeeded(infos, total, threshold) if over else None
                gust = env.get_wrapper_attr("gust") if is_lander else 0.0
                verdict = _verdict(info, success, terminated) if over else ""
                yield Moment(task.name, episode, step, total, over, frame, success, threshold, about, gust, verdict)
    finally:
        env.close()


def _verdict(info: Mapping[str, Any], success: bool | None, terminated: bool) -> str:
    """How an episode ended, in the words of its last step if there are any."""
    if isinstance(outcome := info.get("outcome"), str) and 0 < len(outcome) <= LONGEST_OUTCOME:
        return one_line(outcome)
    if success:
        return "solved"
    if not terminated:
        return "time up"
    return "over" if success is None else "failed"


def task_env(agent: MultiTaskAlgorithm, task: AnyTask, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """An environment of the task as the agent knows it: with the task's one-hot if the agent has learned with one.

    Raises:
        UsageError: the agent has not learned the task, or it has learned in other spaces.
        ValueError: the environment can't be made, or can't be shown in this way.
    """
    if task.name not in agent.task_names:
        raise UsageError(f"the model has not learned task {task.name!r}; it has learned {', '.join(agent.task_names)}")
    env = as_column(make_env(task, render_mode), learned_shape(agent))
    if agent.one_hot_size:
        env = TaskOneHot(env, agent.one_hot_places[agent.task_names.index(task.name)], agent.one_hot_size)
    for kind in ("observation_space", "action_space"):
        ours, theirs = getattr(env, kind), getattr(agent, kind)
        if ours.shape != theirs.shape or getattr(ours, "n", None) != getattr(theirs, "n", None):
            env.close()
            raise UsageError(f"the {kind} of task {task.name!r} is {ours}, and the model has learned in {theirs}")
    return env


def play(agent: MultiTaskAlgorithm, task: TaskLike, episodes: int, seed: int) -> TaskResult:
    """The result of greedy episodes of one task; see `moments`."""
    return result_of([moment for moment in moments(agent, task, episodes, seed) if moment.over])


def result_of(ends: Sequence[Moment]) -> TaskResult:
    """The result of episodes, given the last moment of each, of which there is at least one."""
    return TaskResult.of([end.total for end in ends], [end.success for end in ends], ends[0].solved_at)


def evaluate(agent: MultiTaskAlgorithm, tasks: Sequence[TaskLike], episodes: int, seed: int) -> Evaluation:
    """Play `episodes` greedy episodes of each task, with the seeds `seed`, `seed + 1`, ..."""
    return Evaluation({task.name: play(agent, task, episodes, seed) for task in map(get_task, tasks)})
