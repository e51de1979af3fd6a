"""Options that are about different things, all at once: each must hold beside the others."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch

from mtrl.rl import MultiTaskDQN, evaluate_tasks, make_task_vec_env

TASKS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")


def agent(balancer: str, heads: str) -> MultiTaskDQN:
    env = make_task_vec_env(TASKS, envs_per_task=(1, 3, 2), seed=0, pad=True)
    return MultiTaskDQN(
        "MlpPolicy",
        env,
        balancer,
        policy_kwargs={"heads": heads, "net_arch": [16]},
        reward_scaling="return",
        n_step=2,
        learning_starts=60,
        buffer_size=3_000,
        batch_size=8,
        seed=0,
        device="cpu",
    )


@pytest.mark.parametrize("heads", ["shared", "per_task"])
@pytest.mark.parametrize("balancer", ["equal", "gradnorm", "pcgrad", "rgb", "aim"])
def test_padded_tasks_with_differing_columns_and_scaled_rewards_are_learned(balancer: str, heads: str) -> None:
    model = agent(balancer, heads).learn(360)
    assert model._n_updates > 0
    assert model.actions_of_tasks == (2, 3, 3)
    assert model.update.reward_scales is not None
    assert model.update.reward_scales.count.tolist() == [60, 180, 120]  # values of each task: one for each column
    sizes = [model.replay_buffer.state_dict()["rows"][task].any(1).sum() for task in range(3)]
    assert all(one == other for one, other in pairwise(sizes))

    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = MultiTaskDQN.load(file, device="cpu")
    env = make_task_vec_env(TASKS, envs_per_task=(2, 1, 1), seed=5, pad=True)
    assert evaluate_tasks(loaded, env, 2) == evaluate_tasks(model, make_task_vec_env(TASKS, (2, 1, 1), 5, pad=True), 2)


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two = (agent("pcgrad", "per_task").learn(300) for _ in range(2))
    for mine, other in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert np.array_equal(one.exploration_rates, two.exploration_rates)
