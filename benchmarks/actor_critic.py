"""The cases of `python -m benchmarks.update --algorithm sac`: one update of a soft actor-critic.

Every case updates two critics and an actor (256 and 128 hidden units, the task's embedding among the inputs, no layer
norm) on batches of the same size, with Adam:

* "sb3_sac": `stable_baselines3.SAC.train` with a batch of the same T * B transitions, without balancing. It also draws
  its batch, and it has no task embedding;
* the names of balancers: the update of `mtrl.rl.MultiTaskSAC` with the balancer for critics and actor, or, where it
  needs positive losses, for the critics alone (its name ends with "_critics"). AIM updates its policy every 10 updates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from mtrl.balancers import make_balancer, names
from mtrl.rl import MultiTaskSAC
from mtrl.rl.wrappers import TaskOneHot

STATE, ACTIONS, EMBEDDING, HIDDEN = 8, 2, 8, (256, 128)
LEARNING_RATE = 5e-4


class ContinuousNoise(gymnasium.Env[Any, Any]):
    """Random states and rewards, and two throttles. The cost of an update does not depend on them."""

    observation_space = spaces.Box(-np.inf, np.inf, (STATE,))
    action_space = spaces.Box(-1.0, 1.0, (ACTIONS,))

    def __init__(self, task: int) -> None:
        self.task = f"task{task}"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a new state."""
        super().reset(seed=seed)
        return self.np_random.standard_normal(STATE).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Draw another state. One step in a hundred ends the episode."""
        state = self.np_random.standard_normal(STATE).astype(np.float32)
        return state, float(self.np_random.standard_normal()), bool(self.np_random.random() < 0.01), False, {}


def environment(tasks: int) -> DummyVecEnv:
    """One column per task. Observations end with the one-hot of the task."""
    return DummyVecEnv([lambda task=task: TaskOneHot(ContinuousNoise(task), task, tasks) for task in range(tasks)])  # type: ignore[misc]


def balanced_update(tasks: int, batch_size: int, device: str, critic: str, actor: str) -> Callable[[], None]:
    """The update of `MultiTaskSAC` with these balancers."""
    agent = MultiTaskSAC(
        "MlpPolicy",
        environment(tasks),
        critic,
        {"policy_interval": 10} if critic == "aim" else None,
        actor,
        learning_rate=LEARNING_RATE,
        learning_rate_decay=0,
        memory_angle=0.0,  # Stable-Baselines3 has none
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
        agent.update.update_target(agent.tau)

    return update


def sb3_update(tasks: int, batch_size: int, device: str) -> Callable[[], None]:
    """One update by Stable-Baselines3's `SAC.train`, on the same number of transitions."""
    agent = SAC(
        "MlpPolicy",
        environment(tasks),
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


def make_cases(tasks: int, batch_size: int, device: str) -> dict[str, Callable[[], None]]:
    """All cases that take turns. The first one is "sb3_sac"."""
    torch.set_num_threads(1)
    cases = {"sb3_sac": sb3_update(tasks, batch_size, device)}
    for name in names():
        if make_balancer(name, tasks).needs_positive_losses:
            cases[f"{name}_critics"] = balanced_update(tasks, batch_size, device, name, "equal")
        else:
            cases[name] = balanced_update(tasks, batch_size, device, name, name)
    return cases
