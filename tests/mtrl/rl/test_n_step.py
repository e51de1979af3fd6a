"""Transitions over several steps, against a reference that walks along each column by itself."""

import numpy as np
import pytest
import torch
from gymnasium import Env, spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import MultiTaskDQN
from mtrl.rl.n_step import NStepReturns, Step

GAMMA = 0.9


def random_steps(count, columns=5, seed=0):
    rng = np.random.default_rng(seed)
    steps = []
    for _ in range(count):
        dones = rng.random(columns) < 0.3
        terminals = dones & (rng.random(columns) < 0.5)
        observations, following = rng.standard_normal((2, columns, 2)).astype(np.float32)
        rewards = rng.standard_normal(columns).astype(np.float32)
        steps.append(Step(observations, following, rng.integers(4, size=columns), rewards, dones, terminals))
    return steps


def reference(steps, start, column, n):
    """(observation, next observation, action, reward, discount) of one column, by the definition."""
    reward = 0.0
    for k in range(n):
        step = steps[start + k]
        reward += GAMMA**k * float(step.rewards[column])
        if step.dones[column]:
            break
    discount = 0.0 if step.terminals[column] else GAMMA ** (k + 1)
    first = steps[start]
    return first.observations[column], step.next_observations[column], first.actions[column], reward, discount


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_transitions_are_those_of_the_definition(n):
    steps, returns = random_steps(40), NStepReturns(n, GAMMA)
    made = [returns.add(step) for step in steps]
    assert made[: n - 1] == [None] * (n - 1)
    for start, transitions in enumerate(made[n - 1 :]):
        assert all(part.dtype == np.float32 for part in transitions if part is not transitions.actions)
        for column in range(5):
            mine = [part[column] for part in transitions]
            for value, wanted in zip(mine, reference(steps, start, column, n), strict=True):
                np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


def test_state_dict_goes_on_and_clear_forgets():
    steps, one, two = random_steps(20), NStepReturns(3, GAMMA), NStepReturns(3, GAMMA)
    for step in steps[:10]:
        one.add(step)
    two.load_state_dict(one.state_dict())
    for step in steps[10:]:
        for mine, theirs in zip(one.add(step), two.add(step), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    one.clear()
    assert one.add(steps[0]) is None


class Corridor(Env):
    """Six steps with a reward of 1 each; observation: how many are done. The next episode starts at once."""

    observation_space = spaces.Box(0, 10, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, self.count == 6, False, {}


@pytest.mark.parametrize("n", [1, 3])
def test_the_agent_stores_them(n):
    agent = MultiTaskDQN(
        "MlpPolicy", DummyVecEnv([Corridor]), n_step=n, gamma=GAMMA, learning_starts=10**6, buffer_size=99, seed=0
    ).learn(60)
    batch = agent.replay_buffer.sample(300)
    at, left = batch.observations[:, 0], 6 - batch.observations[:, 0]
    steps = left.clamp(max=n)
    torch.testing.assert_close(batch.next_observations[:, 0], at + steps)
    torch.testing.assert_close(batch.rewards, sum((k < steps) * GAMMA**k for k in range(n)))
    torch.testing.assert_close(batch.discounts, torch.where(left <= n, 0.0, GAMMA**n))
    assert len(agent.replay_buffer) == 60 - (n - 1)


def test_no_transition_reaches_over_a_reset_from_outside():
    agent = MultiTaskDQN(
        "MlpPolicy", DummyVecEnv([Corridor]), n_step=4, learning_starts=10**6, buffer_size=99, seed=0
    ).learn(2)
    agent.learn(60)  # resets
    batch = agent.replay_buffer.sample(300)
    assert (batch.next_observations > batch.observations).all()


def test_training_waits_for_the_first_transition():
    agent = MultiTaskDQN(
        "MlpPolicy", DummyVecEnv([Corridor]), n_step=8, learning_starts=0, gradient_steps=1, batch_size=2, seed=0
    ).learn(12)
    assert agent._n_updates == 12 - 7


def test_it_is_at_least_one():
    with pytest.raises(ValueError, match="n_step is 0; it must be between 1 and 1000"):
        MultiTaskDQN("MlpPolicy", DummyVecEnv([Corridor]), n_step=0)
