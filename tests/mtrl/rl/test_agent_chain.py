"""The agent's update without autograd against the one with it."""

from functools import partial

import pytest
import torch

from agents import MultiTaskDQN
from mtrl.guidance import LookaheadGuidance
from mtrl.rl.td_loss import TDLoss
from tests.support import make_agent

make = partial(make_agent, MultiTaskDQN, learning_starts=24, gradient_steps=1)


@pytest.mark.parametrize(("loss", "delta"), [("huber", 1.0), ("huber", 2.0), ("mse", 1.0)])
def test_the_slope_is_what_autograd_finds(loss, delta):
    generator = torch.Generator().manual_seed(0)
    values = 3 * torch.randn(12, 4, generator=generator, dtype=torch.float64)
    targets = 3 * torch.randn(12, generator=generator, dtype=torch.float64)
    actions = torch.randint(4, (12,), generator=generator)
    errors = (values.gather(1, actions[:, None]).squeeze(1) - targets).abs()
    assert (errors < delta).any()  # both branches of the Huber loss
    assert (errors > delta).any()
    td_loss = TDLoss(3, loss, delta)
    leaf = values.clone().requires_grad_()
    theirs = td_loss(leaf, actions, targets)
    theirs.sum().backward()
    losses, slope = td_loss.losses_and_slope(values.clone(), actions, targets)
    torch.testing.assert_close(losses, theirs.detach())
    torch.testing.assert_close(slope, leaf.grad)


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("loss", ["huber", "mse"])
@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_task_gradients_are_those_of_the_graph(variant, loss, double_q):
    agent = make(variant, td_loss=loss, double_q=double_q).learn(120)
    batch = agent.replay_buffer.sample(16)
    ours = agent.update.task_gradients(batch)
    jacobian, losses = ours.jacobian.clone(), ours.losses.clone()
    handle = agent.policy.q_net.layers[0].register_forward_hook(lambda *_: None)  # the graph's way runs hooks
    theirs = agent.update.task_gradients(batch)
    handle.remove()
    torch.testing.assert_close(losses, theirs.losses.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(jacobian, theirs.jacobian, rtol=1e-4, atol=1e-6)
    assert ours.layer_norms.isfinite().all()
    assert (ours.layer_norms > 0).all()


@pytest.mark.parametrize(
    ("variant", "guidance_loss"), [("aware", "sum"), ("blind", "sum"), ("blind", "log_sum"), ("aware", "unit_norm")]
)
def test_the_lookahead_gradient_is_autograds_and_moves_nothing(variant, guidance_loss):
    options = {"gate": True, "guidance_loss": guidance_loss}
    agent = make(variant, balancer="aim", balancer_kwargs=options, guidance_share=0.3).learn(120)
    assert set(agent.update.diagnostics) >= {"gate", "gate_tau"}
    generator = agent.guidance_buffer.generator
    step = 0.01 * torch.randn(agent.update.weights.numel(), generator=torch.Generator().manual_seed(0))
    before, place = agent.update.weights.clone(), generator.get_state()
    ours = agent.update.guidance(step).clone()
    torch.testing.assert_close(agent.update.weights, before, rtol=0, atol=0)
    # The targets of the chain would not follow parameters that autograd's way moves elsewhere.
    agent.update.values, agent.update.target_values = agent.policy.q_net, agent.policy.q_net_target
    generator.set_state(place)
    theirs = LookaheadGuidance(agent.update.held_out_losses, agent.policy.q_net.parameters(), guidance_loss)(step)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_lookahead_gradient_moves_nothing_even_if_it_fails(monkeypatch):
    agent = make(balancer="aim", guidance_share=0.3).learn(120)
    before = agent.update.weights.clone()
    monkeypatch.setattr(agent.update, "targets", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        agent.update.guidance(torch.ones_like(before))
    torch.testing.assert_close(agent.update.weights, before, rtol=0, atol=0)
