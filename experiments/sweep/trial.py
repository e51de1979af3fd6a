"""A run's agent without the run: whether its settings can be carried out, and how fast it learns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import agents
from agents import MultiTaskDQN
from envs import get_tasks, make_task_vec_env
from experiments.training.config import TrainConfig

RANDOM_STEPS = 600
MEASURED_STEPS = 1_500


@contextmanager
def make_agent(config: TrainConfig, **changes: Any) -> Iterator[MultiTaskDQN]:
    """The agent that the run would train.

    Args:
        config: the run's settings.
        changes: arguments of the agent that are other than the run's.

    Raises:
        ValueError: a setting is out of range, a task or an aggregator is unknown, or an extra is not installed.
    """
    torch.set_num_threads(1)  # as in a run
    env = make_task_vec_env(
        get_tasks(config.tasks), config.envs_per_task, config.seed, config.variant, step_timeout=config.step_timeout
    )
    try:
        kind: type[MultiTaskDQN] = getattr(agents, config.agent)
        yield kind("MlpPolicy", env, **{**config.agent_kwargs, **changes})
    finally:
        env.close()


def measure_speed(config: TrainConfig) -> float:
    """Environment steps per second of the run, updates included and evaluations not, from a few seconds of it."""
    with make_agent(config, learning_starts=RANDOM_STEPS) as agent:
        agent.learn(2 * RANDOM_STEPS)  # what happens once, such as imports, is over by its end
        begun = time.monotonic()
        agent.learn(MEASURED_STEPS, reset_num_timesteps=False)
        return MEASURED_STEPS / (time.monotonic() - begun)
