import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from benchmarks.training_case import BATCH, COLUMNS, ENVIRONMENTS, TASKS
from benchmarks.training_dqn import ALGORITHM, TorchJDDQN


@pytest.fixture
def torchjd_agent() -> TorchJDDQN:
    case = ALGORITHM.case_of_theirs(TorchJDDQN, seed=0)
    case.advance(30 * ENVIRONMENTS)
    assert isinstance(case.agent, TorchJDDQN)
    return case.agent


def test_the_mean_of_the_task_losses_is_the_loss_of_sb3(
    torchjd_agent: TorchJDDQN, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = torchjd_agent.sample(BATCH)
    losses = torchjd_agent.task_losses(batch)
    assert losses.shape == (TASKS,)

    def sample(batch_size: int, env: object = None) -> ReplayBufferSamples:
        return batch

    monkeypatch.setattr(torchjd_agent.replay_buffer, "sample", sample)
    DQN.train(torchjd_agent, gradient_steps=1, batch_size=TASKS * BATCH)
    theirs = torchjd_agent.logger.name_to_value["train/loss"]
    assert losses.mean().item() == pytest.approx(theirs, rel=1e-5)


def test_each_task_is_sampled_from_its_own_columns(torchjd_agent: TorchJDDQN) -> None:
    column = np.arange(ENVIRONMENTS, dtype=np.float32)
    torchjd_agent.replay_buffer.rewards[:] = column
    torchjd_agent.replay_buffer.timeouts[:] = torchjd_agent.replay_buffer.dones[:] = 1
    batch = torchjd_agent.sample(BATCH)
    assert batch.observations.shape == (TASKS * BATCH, 8)
    assert (batch.rewards.view(TASKS, BATCH) // COLUMNS == torch.arange(TASKS)[:, None]).all()
    assert (batch.dones == 0).all()  # a time limit is no end


def test_one_conflict_free_update_is_that_of_sb3(torchjd_agent: TorchJDDQN, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same batch for every task there is no conflict, and PCGrad is the sum: T times SB3's gradient."""
    one = torchjd_agent.sample(BATCH)
    rows = torch.arange(BATCH).repeat(TASKS)
    batch = ReplayBufferSamples(*(None if part is None else part[rows] for part in one))
    monkeypatch.setattr(torchjd_agent.replay_buffer, "sample", lambda *_, **__: batch)
    monkeypatch.setattr(torchjd_agent, "sample", lambda _: batch)
    monkeypatch.setattr(torchjd_agent, "max_grad_norm", 1e9)
    monkeypatch.setattr(torchjd_agent.policy.optimizer, "step", lambda: None)
    gradients = []
    for kind in (DQN, TorchJDDQN):
        kind.train(torchjd_agent, gradient_steps=1, batch_size=TASKS * BATCH)
        gradients.append(torch.cat([p.grad.flatten() for p in torchjd_agent.q_net.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], TASKS * gradients[0], rtol=1e-4, atol=1e-6)
