import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from benchmarks import training
from benchmarks.common import flops_of_update
from benchmarks.training import BATCH, COLUMNS, ENVIRONMENTS, TASKS, TorchJDDQN, equal_work, main


def test_equal_work_is_equal() -> None:
    cases = equal_work(seed=0)
    assert training.SB3_TORCHJD in cases
    for case in cases.values():
        case.advance(10 * ENVIRONMENTS)
        case.advance(5 * ENVIRONMENTS)
    assert {case.steps for case in cases.values()} == {15 * ENVIRONMENTS}
    assert {case.updates for case in cases.values()} == {4 * 15}
    assert {case.updates_per_step for case in cases.values()} == {4 / ENVIRONMENTS}
    assert {case.parameters for case in cases.values()} == {35_716}
    for case in cases.values():
        agent = case.agent
        rows = agent.batch_size * (1 if isinstance(agent, DQN) else TASKS)
        assert rows == TASKS * BATCH
        assert 0 < case.collecting < case.seconds


def test_targets_follow_the_online_networks_equally_often() -> None:
    cases = equal_work(seed=0)
    for case in cases.values():
        case.advance(ENVIRONMENTS)
        policy = case.agent.policy
        online = torch.cat([p.detach().flatten() for p in policy.q_net.parameters()])
        before = torch.cat([p.detach().flatten() for p in policy.q_net_target.parameters()])
        changes = 0
        for _ in range(5):
            case.advance(ENVIRONMENTS)
            now = torch.cat([p.detach().flatten() for p in policy.q_net_target.parameters()])
            changes += not torch.equal(now, before)
            before = now
        assert changes == 5
        assert not torch.equal(online, before)


@pytest.fixture
def torchjd_agent() -> TorchJDDQN:
    case = equal_work(seed=0)[training.SB3_TORCHJD]
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


def test_the_command_prints_and_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "training.json"
    assert main(["--seconds", "0.3", "--rounds", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    assert set(content["steps_per_second"]) == {
        training.OURS,
        training.OURS_PCGRAD,
        training.SB3,
        training.SB3_TORCHJD,
        training.DEFAULTS,
    }
    assert all(speed > 0 for speed in content["steps_per_second"].values())
    assert content["ratio_to_sb3"] > 0
    assert content["ratio_to_sb3_torchjd"] > 0
    assert 0 < content["collection_share"] < 1
    assert content["side_by_side"] is None
    assert content["floor"]["flops_of_update"] == flops_of_update((8, 256, 128, 4), TASKS * BATCH, double_q=False)
    assert all(times > 1 for times in content["times_floor"].values())
    assert "times the floor" in printed
    alike = {name: each for name, each in content["updates_per_step"].items() if name != training.DEFAULTS}
    assert set(alike.values()) == {4 / ENVIRONMENTS}
    assert "steps/s" in printed


def test_without_torchjd_its_row_is_left_out_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "has_torchjd", lambda: False)
    path = tmp_path / "training.json"
    assert main(["--seconds", "0.1", "--rounds", "1", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert training.SB3_TORCHJD not in content["steps_per_second"]
    assert content["ratio_to_sb3_torchjd"] is None
    assert "TorchJD is not installed" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_at_once() -> None:
    pair = training.side_by_side(seconds=1.0, rounds=1, seed=0)
    assert pair.alone > 0
    assert pair.together > 0
    assert pair.ratio == pytest.approx(pair.together / pair.alone)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--json /", "'/' is a folder; figures need a file"),
        ("--json /dev/null/x", "'/dev/null' is a file; figures need a folder"),
        ("--seconds 0", "seconds is 0.0; it must be above 0 and finite"),
        ("--rounds 0", "rounds is 0; it must be at least 1"),
        ("--seed -1", "seed is -1; it must be at least 0"),
        ("--second 3", "unrecognized argument '--second'; did you mean --seconds?"),
    ],
)
def test_bad_flags_get_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"benchmarks.training: {message}\n"
