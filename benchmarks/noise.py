"""What the cases of `python -m benchmarks.update` learn from, and the updates of Stable-Baselines3 on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from mtrl.rl.wrappers import TaskOneHot

STATE, EMBEDDING, HIDDEN = 8, 8, (256, 128)
LEARNING_RATE = 5e-4


class Noise(gymnasium.Env[Any, Any]):
    """Random states and rewards. The cost of an update does not depend on them.

    Args:
        task: the number of the task.
        actions: the space of actions, which change nothing.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (STATE,))

    def __init__(self, task: int, actions: spaces.Space[Any]) -> None:
        self.task = f"task{task}"
        self.action_space = actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a new state."""
        super().reset(seed=seed)
        return self.np_random.standard_normal(STATE).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Draw another state. One step in a hundred ends the episode."""
        state = self.np_random.standard_normal(STATE).astype(np.float32)
        return state, float(self.np_random.standard_normal()), bool(self.np_random.random() < 0.01), False, {}


def environment(tasks: int, actions: spaces.Space[Any]) -> DummyVecEnv:
    """One column per task. Observations end with the one-hot of the task."""
    return DummyVecEnv([lambda task=task: TaskOneHot(Noise(task, actions), task, tasks) for task in range(tasks)])  # type: ignore[misc]


def sb3_update(
    kind: Callable[..., DQN | SAC], actions: spaces.Space[Any], tasks: int, batch_size: int, device: str
) -> Callable[[], None]:
    """One update by `train` of the agent of Stable-Baselines3 that `kind` makes, on the same number of transitions."""
    agent = kind(
        "MlpPolicy",
        environment(tasks, actions),
        learning_rate=LEARNING_RATE,
        buffer_size=1_000 * tasks,
        learning_starts=10**9,
        policy_kwargs={"net_arch": list(HIDDEN)},
        device=device,
        seed=0,
    )
    agent.set_logger(Logger(None, []))
    agent.learn(400 * tasks)
    return lambda: agent.train(1, tasks * batch_size)
