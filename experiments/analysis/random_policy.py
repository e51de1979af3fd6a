"""What acting at random brings, the zero of normalised scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs import make_task_env

RANDOM_SEED = 30_000
"""Seed of the first episode; apart from those of evaluations (10,000 and 20,000 on)."""


def random_returns(tasks: Sequence[str], episodes: int = 100, seed: int = RANDOM_SEED) -> dict[str, list[float]]:
    """Returns of episodes of uniformly random actions, by task; about 10 ms an episode.

    The same arguments always give the same returns, and a task's do not depend on the other tasks.

    Args:
        tasks: names of registered tasks.
        episodes: of each task.
        seed: of the first episode; the next has `seed + 1`, and so on.

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
