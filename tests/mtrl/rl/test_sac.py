"""Multi-task soft actor-critic: the same numbers as Stable-Baselines3's, balancers, saving, and what it refuses."""

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from torch import Tensor

from mtrl.rl import MultiTaskSAC, Task, make_task_vec_env
from mtrl.rl.replay import TaskBatch

NET = {"net_arch": [32, 16], "layer_norm": False}


class Target(gymnasium.Env[Any, Any]):
    """Move a point to a place: the reward is minus the distance, times a factor."""

    def __init__(self, place: float, factor: float = 1.0, size: int = 2) -> None:
        self.observation_space = gymnasium.spaces.Box(-3, 3, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-0.5, 2.0, (size,), np.float32)
        self.place, self.factor = place, factor

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        self.steps = 0
        return self.at.copy(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.steps += 1
        self.at = np.clip(self.at + 0.2 * np.resize(action, 3), -3, 3).astype(np.float32)
        reward = -self.factor * float(np.abs(self.at - self.place).mean())
        return self.at.copy(), reward, self.steps % 7 == 0 and bool(self.at[0] > 0), self.steps == 15, {}


def columns(tasks: int = 2, **kwargs: Any) -> Any:
    made = [Task(f"t{i}", lambda render_mode, i=i: Target(0.5 * i - 0.5, 1 + i)) for i in range(tasks)]
    return make_task_vec_env(made, envs_per_task=2, seed=0, **kwargs)


def agent(tasks: int = 2, env: Any = None, **kwargs: Any) -> MultiTaskSAC:
    settings = {"learning_starts": 20, "batch_size": 16, "buffer_size": 2_000, "seed": 0, "policy_kwargs": NET}
    return MultiTaskSAC("MlpPolicy", columns(tasks) if env is None else env, **{**settings, **kwargs})


@pytest.mark.parametrize("ent_coef", ["auto", "auto_0.3", 0.2])
def test_an_update_equals_that_of_stable_baselines3(ent_coef: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = columns(1, variant="blind")
    ours = agent(env=env, memory_angle=0, learning_rate=1e-3, learning_rate_decay=0, ent_coef=ent_coef)
    theirs = SAC(
        "MlpPolicy",
        Target(-0.5),
        learning_rate=1e-3,
        ent_coef=ent_coef,
        policy_kwargs={"net_arch": [32, 16]},
        batch_size=16,
        device="cpu",
    )
    ours.learn(60)
    reference = copy.deepcopy(theirs.policy.state_dict())
    copy_weights(ours, theirs)
    assert any(not torch.equal(a, reference[k]) for k, a in theirs.policy.state_dict().items())
    theirs._setup_learn(100)
    ours.update = ours.make_update()  # new optimizers, as those of the other agent are new
    for _ in range(5):
        batch = ours.replay_buffer.sample(16)
        noises = [torch.randn(16, 2) for _ in range(2)]
        given = iter(copy.deepcopy(noises))
        monkeypatch.setattr(ours.update, "noise", lambda batch, given=given: next(given))
        ours.update(batch)
        ours.update.update_target(ours.tau)
        step_of_theirs(theirs, batch, noises, monkeypatch)
    after = copy.deepcopy(theirs.policy.state_dict())
    copy_weights(ours, theirs)
    for name, weights in theirs.policy.state_dict().items():
        torch.testing.assert_close(weights, after[name], rtol=0, atol=1e-6, msg=name)
    if isinstance(ent_coef, str):
        assert theirs.log_ent_coef is not None
        torch.testing.assert_close(ours.policy.log_ent_coef.detach(), theirs.log_ent_coef.detach(), rtol=0, atol=1e-6)


def copy_weights(ours: MultiTaskSAC, theirs: SAC) -> None:
    """Give the networks of `theirs` the weights of `ours`, whose actor has mean and deviation in one layer, and whose
    critics take the action first."""
    first, second, last = [layer for layer in ours.policy.actor.networks[0].layers if hasattr(layer, "weight")]
    actor: Any = theirs.actor
    for mine, their in ((first, actor.latent_pi[0]), (second, actor.latent_pi[2])):
        their.load_state_dict(mine.state_dict())
    for part, their in zip((slice(0, 2), slice(2, 4)), (actor.mu, actor.log_std), strict=True):
        their.load_state_dict({"weight": last.weight[part], "bias": last.bias[part]})
    for mine, their in ((ours.policy.critic, theirs.critic), (ours.policy.critic_target, theirs.critic_target)):
        for network, q in zip(mine.networks, their.q_networks, strict=True):
            layers = [layer for layer in network.layers if hasattr(layer, "weight")]
            for layer, target in zip(layers, (q[0], q[2], q[4]), strict=True):
                target.load_state_dict(layer.state_dict())


def step_of_theirs(theirs: SAC, batch: TaskBatch, noises: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """One update of Stable-Baselines3 on our batch, with our noise and our order of inputs."""
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    samples = ReplayBufferSamples(
        batch.observations,
        batch.actions,
        batch.next_observations,
        (batch.discounts == 0).float()[:, None],
        batch.rewards[:, None],
    )
    monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, **__: samples)
    given = iter(noises)
    monkeypatch.setattr(
        torch.distributions.Normal,
        "rsample",
        lambda self, shape=torch.Size(): self.loc + self.scale * next(given),
    )
    for critic in (theirs.critic, theirs.critic_target):
        critic.forward = lambda obs, actions, critic=critic: tuple(  # type: ignore[method-assign]
            q(torch.cat((actions, obs), 1))
            for q in critic.q_networks  # the action first, as ours
        )
    theirs._n_updates = 0
    theirs.train(1, 16)
