import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agents import MultiTaskAlgorithm
from benchmarks import training
from benchmarks.common import flops_of_update
from benchmarks.training import ALGORITHMS, DEFAULTS, OURS, OURS_PCGRAD, equal_work, main
from benchmarks.training_case import BATCH, ENVIRONMENTS, TASKS


@pytest.mark.parametrize(
    ("name", "updates", "parameters"),
    [("dqn", 4, 35_716), ("sac", 2, 35_716 + 2 * 35_841)],  # a Q-network; an actor of the same size and two critics
)
def test_equal_work_is_equal(name: str, updates: int, parameters: int) -> None:
    algorithm = ALGORITHMS[name]
    cases = equal_work(algorithm, seed=0)
    assert list(cases) == [OURS, OURS_PCGRAD, algorithm.sb3_name, algorithm.torchjd_name]
    for case in cases.values():
        case.advance(10 * ENVIRONMENTS)
        case.advance(5 * ENVIRONMENTS)
    assert {case.steps for case in cases.values()} == {15 * ENVIRONMENTS}
    assert {case.updates for case in cases.values()} == {updates * 15}
    assert {case.updates_per_step for case in cases.values()} == {updates / ENVIRONMENTS}
    assert {case.parameters for case in cases.values()} == {parameters}
    for case in cases.values():
        agent = case.agent
        rows = agent.batch_size * (TASKS if isinstance(agent, MultiTaskAlgorithm) else 1)
        assert rows == TASKS * BATCH
        assert 0 < case.collecting < case.seconds


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


@pytest.mark.parametrize(("name", "network"), [("dqn", "q_net"), ("sac", "critic")])
def test_targets_follow_the_online_networks_equally_often(name: str, network: str) -> None:
    algorithm = ALGORITHMS[name]
    for case in equal_work(algorithm, seed=0).values():
        case.advance(ENVIRONMENTS)
        online, target = case.networks[network], getattr(case.agent.policy, f"{network}_target")
        before = weights(target)
        for _ in range(5):
            case.advance(ENVIRONMENTS)
            now = weights(target)
            assert not torch.equal(now, before)
            before = now
        assert not torch.equal(weights(online), before)


def test_the_targets_of_actor_critics_move_by_the_same_share_in_every_update() -> None:
    """If the critics stay at 1 and the targets begin at 0, the targets are at 1 - (1 - tau)^n after n updates."""
    algorithm = ALGORITHMS["sac"]
    for case in equal_work(algorithm, seed=0).values():
        case.advance(ENVIRONMENTS)
        critic, target = case.networks["critic"], case.agent.policy.critic_target
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.fill_(1)
            for parameter in target.parameters():
                parameter.fill_(0)
        case.agent.lr_schedule = lambda _: 0.0  # nothing but the targets moves
        case.advance(10 * ENVIRONMENTS)
        expected = 1 - (1 - algorithm.alike["tau"]) ** (10 * algorithm.updates)
        torch.testing.assert_close(weights(target), torch.full_like(weights(target), expected))


@pytest.mark.parametrize("name", ["dqn", "sac"])
def test_the_command_prints_and_writes_its_figures(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm = ALGORITHMS[name]
    path = tmp_path / "training.json"
    assert main(["--algorithm", name, "--seconds", "0.3", "--rounds", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    names = [OURS, OURS_PCGRAD, algorithm.sb3_name, algorithm.torchjd_name, DEFAULTS]
    assert list(content["steps_per_second"]) == names
    assert all(name in printed for name in names)
    assert all(speed > 0 for speed in content["steps_per_second"].values())
    assert content["ratio_to_sb3"] > 0
    assert content["ratio_to_sb3_torchjd"] > 0
    assert 0 < content["collection_share"] < 1
    assert content["side_by_side"] is None
    alike = {name: each for name, each in content["updates_per_step"].items() if name != DEFAULTS}
    assert set(alike.values()) == {algorithm.updates / ENVIRONMENTS}
    assert "steps/s" in printed
    assert ("floor" in content) == ("times the floor" in printed) == (name == "dqn")
    if name == "dqn":
        assert content["floor"]["flops_of_update"] == flops_of_update((8, 256, 128, 4), TASKS * BATCH, double_q=False)
        assert all(times > 1 for times in content["times_floor"].values())


def test_without_torchjd_its_row_is_left_out_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "has_torchjd", lambda: False)
    path = tmp_path / "training.json"
    assert main(["--seconds", "0.1", "--rounds", "1", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert list(content["steps_per_second"]) == [OURS, OURS_PCGRAD, "SB3 DQN", DEFAULTS]
    assert content["ratio_to_sb3_torchjd"] is None
    assert "TorchJD is not installed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dqn", "sac"])
def test_two_processes_at_once(name: str) -> None:
    pair = training.side_by_side(seconds=1.0, rounds=1, seed=0, algorithm=name)
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
        ("--algorithm ppo", "argument --algorithm: invalid choice 'ppo'; choose from dqn, sac"),
        ("--seed -1", "seed is -1; it must be at least 0"),
        ("--second 3", "unrecognized argument '--second'; did you mean --seconds?"),
    ],
)
def test_bad_flags_get_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"benchmarks.training: {message}\n"
