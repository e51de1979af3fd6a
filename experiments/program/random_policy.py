"""The returns of a random policy, which are the zero of normalised scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium.spaces import Discrete

from experiments.program.tasks import get_task, get_tasks
from mtrl.rl.tasks import AnyTask, TaskLike, make_env, solved_at

RANDOM_SEED = 30_000
"""Seed of the first episode. It is far from the seeds of evaluations, which begin at 10,000 and 20,000."""


def random_returns(tasks: Sequence[TaskLike], episodes: int = 100, seed: int = RANDOM_SEED) -> dict[str, list[float]]:
    """Returns of episodes of uniformly random actions, by task. An episode takes about 10 ms.

    The same arguments always give the same returns. The returns on a task do not depend on the other tasks.

    Args:
        tasks: tasks, or their names.
        episodes: number of episodes on each task.
        seed: the seed of the first episode; the second episode has `seed + 1`, and so on.

    Raises:
        UnknownTaskError: there is no such task.
        ValueError: an environment can't be made, or its actions are not discrete.
    """
    return {task.name: _play(task, episodes, seed) for task in map(get_task, tasks)}


def _play(task: AnyTask, episodes: int, seed: int) -> list[float]:
    env = make_env(task)
    actions, returns = env.action_space, []
    if not isinstance(actions, Discrete):
        raise ValueError(f"the actions of task {task.name!r} are {actions}; they must be Discrete")
    for episode in range(seed, seed + episodes):
        rng = np.random.default_rng(episode)
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(int(actions.start + rng.integers(actions.n)))
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def return_ranges(tasks: Sequence[str], episodes: int = 20) -> list[tuple[float, float]]:
    """For each task, the mean return of a random policy and the return that counts as solved.

    Args:
        tasks: the words of the user that stand for the tasks.
        episodes: number of episodes of the random policy on each task.

    Raises:
        ValueError: a task has no return that counts as solved, or a random policy solves it.
    """
    ranges = []
    for task in get_tasks(tasks):
        env = make_env(task)
        high = solved_at(task, env)
        env.close()
        if high is None:
            raise ValueError(f"no return is known that counts as solved in task {task.name!r}; give return_range")
        low = float(np.mean(_play(task, episodes, RANDOM_SEED)))
        if low >= high:
            raise ValueError(
                f"a random policy reaches {low:.1f} in task {task.name!r}, which counts as solved at {high:g}"
            )
        ranges.append((low, high))
    return ranges
