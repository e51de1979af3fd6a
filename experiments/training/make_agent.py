"""From the settings of a run to its agent and its environments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import agents
from agents import MultiTaskAlgorithm
from experiments.program.device import find_device
from experiments.program.tasks import get_tasks
from experiments.training.config import TrainConfig
from mtrl.rl.vec_env import TaskVecEnv, make_task_vec_env


@contextmanager
def make_agent(config: TrainConfig, **changes: Any) -> Iterator[tuple[MultiTaskAlgorithm, TaskVecEnv]]:
    """The agent that a run trains, and its environments, which are closed when the block ends.

    Args:
        config: the settings of the run.
        changes: arguments of the agent that replace those of the settings.

    Raises:
        ValueError: a setting is out of range, a task or an aggregator is unknown, an extra is not installed, or
            there is no such device.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes, and runs side by side would fight for cores
    find_device(config.device)  # Stable-Baselines3 would take the CPU where there is no GPU, and say nothing
    tasks = get_tasks(config.tasks)
    options: dict[str, Any] = {"step_timeout": config.step_timeout, "pad": config.pad}
    env = make_task_vec_env(tasks, config.envs_per_task, config.seed, config.variant, **options)
    try:
        kind: type[MultiTaskAlgorithm] = getattr(agents, config.agent)
        yield kind("MlpPolicy", env, **{**config.agent_kwargs, **changes}), env
    finally:
        env.close()
