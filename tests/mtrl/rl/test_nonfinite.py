"""NaN and infinity, injected wherever they can enter: named within one update, or left out and counted."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from agents import BRC, IndependentDQN, MultiTaskDQN, NonFiniteError
from mtrl.balancers import Balance, Balancer
from mtrl.rl.nonfinite import FiniteGuard
from tests.support import make_agent

make = partial(make_agent, learning_starts=12, gradient_steps=1)
NAN, INF = math.nan, math.inf


class Faulty(Balancer):
    """Gives the second task the weight NaN when it is told to."""

    fault = False

    def balance(self, gradients, losses):
        weights = torch.ones(len(losses))
        if self.fault:
            weights[1] = NAN
        return Balance(weights)


def inject(agent, column, at, reward=None, observation=None):
    """From the `at`-th step on, once, a value takes the place of what the environment gives in `column`."""
    env, steps = agent.env, 0
    real = env.step_wait

    def step_wait():
        nonlocal steps
        steps += 1
        observations, rewards, dones, infos = real()
        if steps == at:
            observations, rewards = observations.copy(), rewards.copy()
            if reward is not None:
                rewards[column] = reward
            if observation is not None:
                observations[column, 3] = observation
        return observations, rewards, dones, infos

    env.step_wait = step_wait


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("quantity", ["reward", "observation"])
@pytest.mark.parametrize("kind", [MultiTaskDQN, IndependentDQN, BRC])
def test_what_an_environment_gives_is_named_at_once(kind, quantity, value):
    agent = make(kind)
    inject(agent, column=3, at=20, **{quantity: value})
    with pytest.raises(NonFiniteError, match=rf"^environment 1 of task Windy gave the {quantity} {value} at step 120$"):
        agent.learn(600)
    assert all(bool(parameter.isfinite().all()) for parameter in agent.policy.parameters())


@pytest.mark.parametrize("quantity", ["reward", "observation"])
def test_such_a_step_can_be_skipped(quantity):
    agent = make(on_nonfinite="skip", n_step=3)
    inject(agent, column=3, at=20, **{quantity: NAN})
    agent.learn(600)
    # An observation is in two steps: it follows the one and begins the other.
    left_out = {"reward": 1, "observation": 2}[quantity]
    assert agent.guard.skipped == {"train/skipped_steps": left_out}
    # Nor is there a transition over the gap: two steps end before it and two wait after it.
    assert len(agent.replay_buffer) == 2 * (100 - left_out - 2 - 2)
    assert np.isfinite(agent.replay_buffer._rows).all()
    assert all(bool(parameter.isfinite().all()) for parameter in agent.policy.parameters())


@pytest.mark.parametrize("kind", [MultiTaskDQN, IndependentDQN])
def test_large_finite_numbers_are_no_fault(kind):
    agent = make(kind)
    inject(agent, column=0, at=20, reward=1e30)
    agent.learn(150)


def poison(agent, task, column, value):
    """Put a value into every stored transition of a task, as if it had come in unseen."""
    agent.replay_buffer._rows[task, :, column] = value


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("kind", [MultiTaskDQN, IndependentDQN, BRC])
@pytest.mark.parametrize("balancer", ["equal", "gradnorm", "pcgrad", "rgb", "aim"])
def test_a_loss_is_named_within_one_update_and_nothing_has_changed(kind, balancer, value):
    if kind is IndependentDQN and balancer != "equal":
        pytest.skip("independent networks have no balancer")
    agent = make(kind, balancer=balancer).learn(300)
    poison(agent, task=2, column=-2, value=value)  # the reward
    weights, state = (
        agent.update.weights.clone(),
        {k: v.clone() for k, v in agent.balancer.state_dict().items() if isinstance(v, torch.Tensor)},
    )
    with pytest.raises(
        NonFiniteError, match=r"^(the loss|a stored reward) of task Heavy is (nan|inf) in update \d+, at step 300$"
    ):
        agent.train(1, 8)
    torch.testing.assert_close(agent.update.weights, weights, rtol=0, atol=0)
    for name, before in state.items():
        torch.testing.assert_close(agent.balancer.state_dict()[name], before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("balancer", ["pcgrad", "gradnorm", "equal"])
def test_a_gradient_is_named(balancer, monkeypatch):
    agent = make(balancer=balancer).learn(300)
    state = repr(agent.balancer.state_dict())
    backward = agent.update.chain.backward

    def broken(slope, losses):
        gradients = backward(slope, losses)
        gradients.jacobian[1, 7] = NAN
        return gradients

    monkeypatch.setattr(agent.update.chain, "backward", broken)
    with pytest.raises(NonFiniteError, match=r"^the gradient of task Windy is not finite in update \d+, at step 300$"):
        agent.train(1, 8)
    assert agent.update.weights.isfinite().all()
    assert repr(agent.balancer.state_dict()) == state


def test_a_balancers_answer_is_named():
    agent = make(balancer=Faulty()).learn(300)
    agent.balancer.fault = True
    with pytest.raises(NonFiniteError, match=r"^the balancer's weight of task Windy is nan in update \d+"):
        agent.train(1, 8)


def test_updates_can_be_skipped_and_are_counted():
    agent = make(on_nonfinite="skip").learn(300)
    sound = agent.replay_buffer._rows.copy()
    before, updates = agent.update.weights.clone(), agent._n_updates
    poison(agent, task=0, column=-2, value=NAN)
    agent.train(3, 8)
    assert agent.guard.skipped["train/skipped_updates"] == 3
    assert agent._n_updates == updates
    torch.testing.assert_close(agent.update.weights, before, rtol=0, atol=0)
    agent.replay_buffer._rows[:] = sound
    agent.train(1, 8)
    assert agent._n_updates == updates + 1
    agent.dump_logs()


def test_exploding_values_are_caught_before_they_become_weights():
    agent = make(learning_rate=1e30, max_grad_norm=None)
    with pytest.raises(NonFiniteError, match=r"of task (Standard|Windy|Heavy) is"):
        agent.learn(600)


def test_the_policy_is_one_of_two():
    with pytest.raises(ValueError, match="unknown on_nonfinite 'ignore'; choose from raise, skip"):
        make(on_nonfinite="ignore")


def test_a_column_is_named_by_its_task_whatever_the_numbers_of_columns():
    guard = FiniteGuard("raise", ["a", "b"])
    rewards = np.array([0, 0, np.nan, 0])
    with pytest.raises(NonFiniteError, match=r"^environment 1 of task b gave the reward nan at step 7"):
        guard.step_is_finite(np.zeros((4, 1)), np.zeros((4, 1)), rewards, 7, np.array([0, 1, 1, 1]))
