"""Columns that a user makes: time limits outside of monitors, processes of their own without a task."""

from functools import partial

import gymnasium
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from mtrl.rl import MultiTaskDQN, evaluate_tasks


def _limited_outside_of_its_monitor() -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(Monitor(gymnasium.make("CartPole-v1")), 5)


def test_a_time_limit_outside_the_monitor_is_no_end_without_a_report() -> None:
    """In Stable-Baselines3 `evaluate_policy` waits for ever for a report (its issue 477)."""
    model = MultiTaskDQN("MlpPolicy", DummyVecEnv([_limited_outside_of_its_monitor]), buffer_size=256, seed=0)
    found = evaluate_tasks(model, DummyVecEnv([_limited_outside_of_its_monitor]), 2)
    assert found["task"].lengths == (5, 5)


def test_columns_in_processes_need_no_task() -> None:
    env = SubprocVecEnv([partial(gymnasium.make, "CartPole-v1")] * 2)
    try:
        model = MultiTaskDQN("MlpPolicy", env, buffer_size=256, seed=0)
        assert model.task_names == ("task",)
        assert len(evaluate_tasks(model, env, 2)["task"].returns) == 2
    finally:
        env.close()
