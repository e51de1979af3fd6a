import json
import math
from pathlib import Path

import pytest

from benchmarks import time_to_return
from benchmarks.common import flops_of_update
from benchmarks.time_to_return import BenchmarkConfig, Point, Run, main, medians
from experiments.shared_dqn.config import SharedDQNConfig

TINY = "--variant blind --total-steps 240 --eval-interval 100 --episodes 1 --targets -5000 5000"


def point(steps: int, mean: float) -> Point:
    return Point(steps, steps / 100, steps / 200, steps / 50, {"Standard": mean}, mean)


def test_a_target_is_reached_at_the_first_evaluation_that_is_good_enough() -> None:
    run = Run(0, [point(100, -3.0), point(200, 7.0), point(300, 5.0)])
    assert run.reached(5.0) == run.curve[1]
    assert run.reached(7.5) is None
    assert Run.of_json({"seed": 0, "curve": [vars(one) for one in run.curve]}) == run


def test_medians_count_a_seed_that_fails_as_infinite() -> None:
    fast, slow = (Run(seed, [point(100 * seed, 9.0)]) for seed in (1, 2))
    never = Run(3, [point(300, 1.0)])
    assert medians([fast, slow, never], 5.0)["steps"] == 200
    assert medians([fast, slow, never], 5.0)["training_seconds"] == 2.0
    assert medians([fast, never, never], 5.0)["steps"] == math.inf


def test_every_method_has_defaults_to_train_with() -> None:
    for method in time_to_return.METHODS:
        config = BenchmarkConfig(method=method, variant="blind", total_steps=240)
        training = config.training(seed=7)
        assert (training.method, training.variant, training.seed, training.total_steps) == (method, "blind", 7, 240)


def test_the_command_writes_its_figures_and_goes_on_from_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "returns.json"
    argv = [*TINY.split(), "--json", str(path)]
    assert main([*argv, "--seeds", "3"]) == 0
    content = json.loads(path.read_text())
    assert set(content) >= {"settings", "versions", "reached", "runs"}
    (run,) = content["runs"]
    assert run["seed"] == 3
    assert [one["steps"] for one in run["curve"]] == [108, 204, 240]
    for one in run["curve"]:
        assert set(one["returns"]) == {"Standard", "Windy", "Heavy"}
        assert one["mean"] == pytest.approx(sum(one["returns"].values()) / 3)
        assert 0 < one["training_seconds"] < one["seconds_with_evaluation"]
        assert one["cpu_seconds"] > 0
    assert content["reached"]["-5000"]["seeds"]["3"] == run["curve"][0]
    assert content["reached"]["-5000"]["median"]["steps"] == 108
    assert content["reached"]["5000"] == {
        "seeds": {"3": None},
        "median": dict.fromkeys(("steps", "training_seconds", "cpu_seconds", "seconds_with_evaluation")),
    }
    printed = capsys.readouterr().out
    assert "not reached" in printed
    assert "times the floor" in printed
    assert content["floor"]["flops_of_update"] == flops_of_update((8, 256, 128, 4), 192, double_q=True)
    assert content["floor"]["seconds_per_step"] > 0

    trained = []
    monkeypatch.setattr(time_to_return, "train", lambda _, seed: trained.append(seed) or Run(seed, [point(12, 6.0)]))
    assert main([*argv, "--seeds", "4", "3", "5"]) == 0
    assert trained == [4, 5]
    assert [run["seed"] for run in json.loads(path.read_text())["runs"]] == [3, 4, 5]
    assert json.loads(path.read_text())["runs"][0] == run

    with pytest.raises(SystemExit) as stop:
        main([*argv, "--seeds", "6", "--episodes", "2"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"benchmarks.time_to_return: '{path}' holds runs with episodes 1, not 2: give another file\n"
    )
    assert trained == [4, 5]


def test_a_run_ends_at_the_highest_target_unless_told_otherwise() -> None:
    ends = BenchmarkConfig(variant="blind", total_steps=240, eval_interval=48, episodes=1, targets=(-5000.0,))
    assert [one.steps for one in time_to_return.train(ends, 0).curve] == [48]
    goes_on = BenchmarkConfig(
        variant="blind", total_steps=240, eval_interval=120, episodes=1, targets=(-5000.0,), to_the_end=True
    )
    assert [one.steps for one in time_to_return.train(goes_on, 0).curve] == [120, 240]


def test_evaluations_do_not_change_what_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    def training(self: BenchmarkConfig, seed: int) -> SharedDQNConfig:
        return SharedDQNConfig(variant="blind", seed=seed, total_steps=240, learning_starts=24)

    monkeypatch.setattr(BenchmarkConfig, "training", training)

    def last(interval: int, seed: int = 0) -> dict[str, float]:
        config = BenchmarkConfig(eval_interval=interval, episodes=1)
        return time_to_return.train(config, seed).curve[-1].returns

    assert last(240) == last(60)
    assert last(240) != last(240, seed=1)


def test_a_file_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"runs": 3}')
    with pytest.raises(SystemExit) as stop:
        main([*TINY.split(), "--json", str(path)])
    assert stop.value.code == 2
    assert "holds something else" in capsys.readouterr().err
    assert path.read_text() == '{"runs": 3}'


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--json /", "'/' is a folder; figures need a file"),
        ("--json /dev/null/x", "'/dev/null' is a file; figures need a folder"),
        ("--method foo", f"unknown method 'foo'; methods are {', '.join(time_to_return.METHODS)}"),
        ("--seeds 1 1", "seeds are (1, 1); give at least one, all different and none below 0"),
        ("--targets", "targets are (); give at least one, all finite"),
        ("--workers 0", "workers is 0; it must be at least 1"),
        ("--total-steps 0", "total_steps is 0; it must be at least 1"),
        ("--variant deaf", "argument --variant: invalid choice 'deaf'; choose from aware, blind"),
    ],
)
def test_bad_flags_get_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"benchmarks.time_to_return: {message}\n"
