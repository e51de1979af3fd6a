"""The returns of a random policy, which are the zero of normalised scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs import make_task_env

RANDOM_SEED = 30_000
"""Seed of the first episode. It is far from the seeds of evaluations, which begin at 10,000 and 20,000."""


def random_returns(tasks: Sequence[str], episodes: int = 100, seed: int = RANDOM_SEED) -> dict[str, list[float]]:
    """Returns of episodes of uniformly random actions, by task. An episode takes about 10 ms.

    The same arguments always give the same returns. The returns on a task do not depend on the other tasks.

    Args:
        tasks: names of registered tasks.
        episodes: number of episodes on each task.
        seed: the seed of the first episode; the second episode has `seed + 1`, and so on.

    Raises:
        UnknownTaskError: a task is not registered.
    """
    return {task: _play(task, episodes, seed) for task in tasks}


def _play(task: str, episodes: int, seed: int) -> list[float]:
    env = make_task_env(task, tasks=(task,))
    returns = []
    for episode in range(seed, seed + episodes):
        rng = np.random.default_rng(episode)
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))  # type: ignore[attr-defined]
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    env.close()
    return returns
