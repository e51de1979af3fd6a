"""Columns that a user makes: time limits outside of monitors, processes of their own."""

from functools import partial

import gymnasium
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from mtrl.rl import MultiTaskDQN, MultiTaskSAC, evaluate_tasks


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


def test_columns_in_processes_are_learned_from_bit_for_bit_alike() -> None:
    """Rewards from processes come in double precision, of which sums over several steps would differ."""
    weights = []
    for kind in (DummyVecEnv, SubprocVecEnv):
        env = kind([partial(gymnasium.make, "Pendulum-v1")] * 2)
        try:
            model = MultiTaskSAC("MlpPolicy", env, learning_starts=20, batch_size=8, buffer_size=256, seed=0)
            model.learn(80)
            weights.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()))
        finally:
            env.close()
    assert torch.equal(*weights)
