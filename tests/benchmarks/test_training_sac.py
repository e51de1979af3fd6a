import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from benchmarks.training_case import BATCH, COLUMNS, ENVIRONMENTS, TASKS
from benchmarks.training_sac import ALGORITHM, TorchJDSAC

LOGGED = ("train/critic_loss", "train/actor_loss", "train/ent_coef")


@pytest.fixture
def agent() -> TorchJDSAC:
    case = ALGORITHM.case_of_theirs(TorchJDSAC, seed=0)
    case.advance(30 * ENVIRONMENTS)
    assert isinstance(case.agent, TorchJDSAC)
    return case.agent


def learn_from(agent: TorchJDSAC, batch: ReplayBufferSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of training learn from this batch, and no network changes."""
    monkeypatch.setattr(agent.replay_buffer, "sample", lambda *_, **__: batch)
    monkeypatch.setattr(agent, "sample", lambda _: batch)
    monkeypatch.setattr(agent, "lr_schedule", lambda _: 0.0)
    monkeypatch.setattr(agent, "tau", 0.0)


def train(kind: type[SAC], agent: TorchJDSAC) -> tuple[dict[str, float], dict[str, Tensor]]:
    """One update by `kind.train`, always with the same noise: what it logs, and the gradients that each step takes."""
    gradients: dict[str, Tensor] = {}
    hooks = []
    for name, network in (("critic", agent.critic), ("actor", agent.actor)):

        def keep(*_: object, name: str = name, network: nn.Module = network) -> None:
            gradients[name] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

        hooks.append(network.optimizer.register_step_pre_hook(keep))
    torch.manual_seed(0)
    kind.train(agent, gradient_steps=1, batch_size=TASKS * BATCH)
    for hook in hooks:
        hook.remove()
    return {name: agent.logger.name_to_value[name] for name in LOGGED}, gradients


def test_the_means_of_the_task_losses_are_the_losses_of_sb3(agent: TorchJDSAC, monkeypatch: pytest.MonkeyPatch) -> None:
    learn_from(agent, agent.sample(BATCH), monkeypatch)
    (theirs, _), (ours, _) = train(SAC, agent), train(TorchJDSAC, agent)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_each_task_has_a_loss_of_its_own(agent: TorchJDSAC) -> None:
    batch = agent.sample(BATCH)
    changed = batch._replace(rewards=batch.rewards + torch.tensor([0.0, 1000.0, 0.0]).repeat_interleave(BATCH)[:, None])
    losses = []
    for each in (batch, changed):
        torch.manual_seed(0)
        losses.append(agent.critic_losses(each, torch.tensor(0.1)))
    assert losses[0].shape == (TASKS,)
    assert (losses[0] != losses[1]).tolist() == [False, True, False]


def test_conflict_free_gradients_are_those_of_sb3(agent: TorchJDSAC, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same batch and noise for every task there is no conflict, and PCGrad is the sum: T times SB3's."""
    one = agent.sample(BATCH)
    rows = torch.arange(BATCH).repeat(TASKS)
    batch = ReplayBufferSamples(*(None if part is None else part[rows] for part in one))
    learn_from(agent, batch, monkeypatch)
    draw = agent.actor.action_log_prob
    monkeypatch.setattr(agent.actor, "action_log_prob", lambda all_: tuple(x[rows] for x in draw(all_[:BATCH])))
    (_, theirs), (_, ours) = train(SAC, agent), train(TorchJDSAC, agent)
    assert ours.keys() == theirs.keys() == {"critic", "actor"}
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], TASKS * gradient, rtol=1e-4, atol=1e-5)


def test_the_temperature_learns_as_that_of_sb3(agent: TorchJDSAC, monkeypatch: pytest.MonkeyPatch) -> None:
    learn_from(agent, agent.sample(BATCH), monkeypatch)
    assert agent.log_ent_coef is not None
    gradients = []
    for kind in (SAC, TorchJDSAC):
        train(kind, agent)
        assert agent.log_ent_coef.grad is not None
        gradients.append(agent.log_ent_coef.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0] != 0


def test_each_task_is_sampled_from_its_own_columns(agent: TorchJDSAC) -> None:
    agent.replay_buffer.rewards[:] = np.arange(ENVIRONMENTS, dtype=np.float32)
    agent.replay_buffer.timeouts[:] = agent.replay_buffer.dones[:] = 1
    batch = agent.sample(BATCH)
    assert batch.observations.shape == (TASKS * BATCH, 8)
    assert batch.actions.shape == (TASKS * BATCH, 2)
    assert (batch.rewards.view(TASKS, BATCH) // COLUMNS == torch.arange(TASKS)[:, None]).all()
    assert (batch.dones == 0).all()  # a time limit is no end
