"""The programs as a user runs them, in one process and small."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest

from agents import MultiTaskDQN
from experiments import analyze_results
from experiments.gradnorm import evaluate as gradnorm_evaluate
from experiments.gradnorm import train as gradnorm_train
from experiments.gradnorm.config import PRESETS, GradNormConfig
from experiments.shared_dqn import evaluate as shared_evaluate
from experiments.shared_dqn import train as shared_train
from experiments.shared_dqn.config import SharedDQNConfig
from experiments.training.algorithms import DQNTrainConfig
from experiments.training.evaluation import FINAL_SEED, Evaluation, TaskResult, moments, play
from mtrl import GradNorm
from mtrl.rl import DQNSettings
from tests.support import fails

QUICK = [
    *("--total-steps", "1500", "--envs-per-task", "2", "--learning-starts", "120", "--batch-size", "8"),
    *("--eval-interval", "600", "--eval-episodes", "1", "--final-episodes", "2", "--quiet"),
]


def snapshot(folder):
    """Every path below a folder with its content and time."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three finished runs."""
    folder = tmp_path_factory.mktemp("results") / "runs"
    assert shared_train.main([*QUICK, "--results-dir", str(folder)]) == 0
    assert gradnorm_train.main([*QUICK, "--results-dir", str(folder), "--variant", "blind"]) == 0
    assert gradnorm_train.main([*QUICK, "--results-dir", str(folder), "--variant", "blind", "--seed", "1"]) == 0
    return folder


def test_a_run_leaves_its_four_files_and_those_of_tensorboard(results):
    folder = results / "gradnorm_blind" / "seed_1"
    files = {"config.json", "metrics.jsonl", "model.zip", "evaluation.json", "tensorboard"}
    assert {path.name for path in folder.iterdir()} == files
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["seed"] == 1
    assert config["settings"]["variant"] == "blind"
    assert config["environments"]["Windy"] == "mtrl/LunarLander-Windy-v0"
    assert set(config["versions"]) >= {"gymnasium", "box2d", "torch", "stable-baselines3", "mtrl"}

    evaluation = json.loads((folder / "evaluation.json").read_text())
    means = {}
    for task in ("Standard", "Windy", "Heavy"):
        result = evaluation["tasks"][task]
        assert len(result["returns"]) == 2
        means[task] = np.mean(result["returns"])
        assert result["mean"] == pytest.approx(means[task])
        assert result["standard_deviation"] == pytest.approx(np.std(result["returns"], ddof=1))
        assert result["success_rate"] == np.mean(np.array(result["returns"]) >= 200)
    assert evaluation["mean"] == pytest.approx(np.mean(list(means.values())))
    assert evaluation["worst_task"] == {"name": min(means, key=means.get), "mean": pytest.approx(min(means.values()))}


def test_metrics_have_the_agreed_names(results):
    lines = [json.loads(line) for line in (results / "gradnorm_blind/seed_0/metrics.jsonl").read_text().splitlines()]
    keys = set().union(*lines)
    for task in ("Standard", "Windy", "Heavy"):
        assert keys >= {f"eval/{task}/return", f"balancer/{task}/weight", f"train/{task}/loss", f"train/{task}/return"}
    assert "time/steps_per_s" in keys
    steps = [line["env_step"] for line in lines]
    assert steps == sorted(steps)
    assert steps[-1] == 1500
    assert [line["env_step"] for line in lines if "eval/Windy/return" in line] == [600, 1200]


def test_one_seed_gives_identical_files(results, tmp_path):
    gradnorm_train.main([*QUICK, "--results-dir", str(tmp_path), "--variant", "blind"])
    one, two = results / "gradnorm_blind" / "seed_0", tmp_path / "gradnorm_blind" / "seed_0"
    for name in ("model.zip", "evaluation.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()

    def untimed(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]

    assert untimed(one) == untimed(two)


def test_evaluate_repeats_what_training_found(results, capsys):
    arguments = ["--results-dir", str(results), "--episodes", "2"]
    assert shared_evaluate.main(arguments) == 0
    printed = capsys.readouterr().out
    evaluation = json.loads((results / "shared_dqn/seed_0/evaluation.json").read_text())
    for task, result in evaluation["tasks"].items():
        row = next(line for line in printed.splitlines() if task in line)
        assert f"{result['mean']:.1f}" in row
    shared_evaluate.main([*arguments, "--task", "Heavy"])
    printed = capsys.readouterr().out
    assert "Heavy" in printed
    assert "Windy" not in printed


def test_an_episode_does_not_depend_on_how_many_are_played_or_filmed(results):
    agent = MultiTaskDQN.load(results / "shared_dqn/seed_0/model.zip", device="cpu")
    three = play(agent, "Windy", 3, FINAL_SEED)
    filmed = list(moments(agent, "Windy", 1, FINAL_SEED + 2, "rgb_array"))
    assert [moment.total for moment in filmed if moment.over] == [three.returns[2]]
    assert {moment.frame.shape for moment in filmed} == {(400, 600, 3)}


def test_video_dir_gets_one_readable_mp4_per_task(results, tmp_path):
    arguments = ["--results-dir", str(results), "--variant", "blind", "--episodes", "2", "--video-episodes", "1"]
    assert gradnorm_evaluate.main([*arguments, "--video-dir", str(tmp_path / "videos")]) == 0
    assert {path.name for path in (tmp_path / "videos").iterdir()} == {"Standard.mp4", "Windy.mp4", "Heavy.mp4"}
    with imageio.get_reader(tmp_path / "videos" / "Windy.mp4") as reader:
        assert reader.get_meta_data()["size"] == (600, 452)  # 52 are the caption
        assert reader.get_data(20).std() > 5  # something is in the picture


def test_render_opens_a_window(results, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert shared_evaluate.main(["--results-dir", str(results), "--episodes", "1", "--task", "Windy", "--render"]) == 0


def test_analysis_prints_a_table_and_draws(results, tmp_path, capsys):
    output = tmp_path / "analysis"
    assert analyze_results.main(["--results-dir", str(results), "--output-dir", str(output)]) == 0
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 4
    row = next(line for line in table if line.startswith("| gradnorm_blind | 0, 1 |"))
    means = [json.loads((results / f"gradnorm_blind/seed_{s}/evaluation.json").read_text())["mean"] for s in (0, 1)]
    assert row.split(" | ")[5].startswith(f"{np.mean(means):.1f} [")
    assert "\n".join(table) in (output / "table.md").read_text()
    assert "One seed only of shared_dqn" in printed
    for name in ("learning_curves", "task_weights", "final_returns", "conflicts"):
        assert imageio.imread(output / f"{name}.png").std() > 5
        assert (output / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    rows = (output / "table.csv").read_text().splitlines()
    agents = {name: MultiTaskDQN.load(results / name / "seed_0/model.zip") for name in ("shared_dqn", "gradnorm_blind")}
    for name, agent in agents.items():  # counted without the model
        (row,) = [line for line in rows if line.startswith(f"{name},") and ",parameters," in line]
        assert f",{sum(parameter.numel() for parameter in agent.policy.q_net.parameters())}," in row

    analyze_results.main(["--results-dir", str(results), "--output-dir", str(output), "--method", "shared_dqn"])
    assert "gradnorm" not in capsys.readouterr().out


def test_analysis_skips_what_it_cannot_read_in_one_line_each(results, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(results, runs)
    (runs / "gradnorm_blind/seed_0/evaluation.json").write_text('{"tasks": 3}')
    (runs / "gradnorm_blind/seed_1/metrics.jsonl").write_text('{"env_step": 1\n')
    (runs / "shared_dqn/seed_7").mkdir()
    (runs / "shared_dqn/seed_7/config.json").write_text("{}")
    assert analyze_results.main(["--results-dir", str(runs), "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 3
    assert all(line.startswith("skipped ") for line in printed.err.splitlines())
    assert "| shared_dqn | 0 |" in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "Standard", "Windey"], "unknown task 'Windey'; tasks are Standard, Windy, Heavy"),
        (["--tasks"], "no tasks given; tasks are Standard, Windy, Heavy"),
        (["--tasks", "Heavy", "Heavy"], "tasks must be distinct, not Heavy, Heavy"),
        (["--variant", "deaf"], "argument --variant: invalid choice 'deaf'; choose from aware, blind"),
        (["--total-steps", "-5"], "total_steps is -5; it must be at least 1"),
        (["--batch-size", "200000"], "batch_size is 200000; it must be between 1 and the 160000 transitions"),
        (["--preset", "nots"], "argument --preset: invalid choice 'nots'; choose from default, notes"),
        (["--envs-per-task", "0"], "envs_per_task is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--hidden-dims", "0"], "hidden_dims is (0,)"),
        (["--alpha", "nan"], "alpha is nan"),
        (["--weight-floor", "1.5"], "weight_floor is 1.5; it must be at least 0 and below 1"),
        (["--no-such-flag", "1"], "unrecognized argument"),
        (["--episodes-per-task", "0"], "episodes_per_task is 0"),
        (["--device", "tpu"], "invalid choice 'tpu'"),
    ],
)
def test_bad_training_input_is_one_line_and_leaves_no_trace(tmp_path, capsys, arguments, message):
    line = fails(gradnorm_train.main, ["--results-dir", tmp_path / "runs", *arguments], capsys)
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_finished_runs_and_files_in_the_way_are_left_alone(results, tmp_path, capsys):
    before = snapshot(results)
    assert "--existing replace" in fails(shared_train.main, [*QUICK, "--results-dir", results], capsys)
    assert snapshot(results) == before
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    for place in (blocked, blocked / "below"):
        assert "is a file" in fails(shared_train.main, [*QUICK, "--results-dir", place], capsys)
    assert blocked.read_text() == "mine"


def test_only_replace_replaces_a_finished_run(tmp_path, capsys):
    arguments = [*QUICK, "--results-dir", str(tmp_path)]
    shared_train.main(arguments)
    for words in ("--existing restart", "--existing continue", "--no-resume"):
        assert "holds a finished run" in fails(shared_train.main, [*arguments, *words.split()], capsys)
    for words, gamma in (("--existing replace", 0.5), ("--overwrite", 0.6), ("--overwrite --no-resume", 0.7)):
        shared_train.main([*arguments, *words.split(), "--gamma", str(gamma)])
        assert json.loads((tmp_path / "shared_dqn/seed_0/config.json").read_text())["settings"]["gamma"] == gamma
    line = fails(shared_train.main, [*arguments, "--gamma", "0.8"], capsys)
    assert "other settings (gamma was 0.7 and is 0.8); give --label NAME to keep both" in line
    assert "other settings" not in fails(shared_train.main, [*arguments, "--gamma", "0.7"], capsys)


def test_bad_evaluation_input_is_one_line_and_leaves_no_trace(results, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(results, runs)
    video = ["--video-dir", tmp_path / "videos"]
    base = ["--results-dir", runs, *video]
    assert "train it: python -m experiments.gradnorm.train" in fails(gradnorm_evaluate.main, base, capsys)
    line = fails(shared_evaluate.main, [*base, "--task", "Moon"], capsys)
    assert "unknown task 'Moon'; choose from all, Standard, Windy, Heavy" in line
    assert "episodes is 0" in fails(shared_evaluate.main, [*base, "--episodes", "0"], capsys)
    assert "can't be combined" in fails(shared_evaluate.main, [*base, "--render"], capsys)
    model = runs / "shared_dqn/seed_0/model.zip"
    shutil.copy(runs / "gradnorm_blind/seed_0/model.zip", model)
    assert "holds a task-blind model, not a task-aware one" in fails(shared_evaluate.main, base, capsys)
    model.write_bytes(model.read_bytes()[:1000])
    assert "model.zip" in fails(shared_evaluate.main, base, capsys)
    assert not (tmp_path / "videos").exists()


def test_bad_analysis_input_is_one_line_and_leaves_no_trace(results, tmp_path, capsys):
    output = ["--output-dir", tmp_path / "out"]
    line = fails(analyze_results.main, ["--results-dir", results, *output, "--method", "gradnrom"], capsys)
    assert "'gradnrom'" in line
    assert "there are gradnorm_blind, shared_dqn" in line
    assert "no finished runs" in fails(analyze_results.main, ["--results-dir", tmp_path / "none", *output], capsys)
    assert list(tmp_path.iterdir()) == []


def test_defaults_are_those_of_the_agent_and_the_balancer():
    config = DQNTrainConfig()
    for name, value in dataclasses.asdict(DQNSettings(memory_angle=0.8)).items():
        assert getattr(config, name) == value, name
    balancer = inspect.signature(GradNorm).parameters
    for name, value in GradNormConfig().balancer_kwargs.items():
        if name != "return_range":  # has no default: it depends on the environment
            assert value == balancer[name].default, name


def test_preset_notes_has_the_numbers_of_the_notes():
    notes = PRESETS["notes"]
    assert (notes.episodes_per_task, notes.batch_size, notes.buffer_size) == (500, 64, 100_000)
    assert notes.learning_starts == 3 * 2000
    assert (notes.learning_rate, notes.gamma) == (5e-4, 0.99)
    assert (notes.exploration_initial_eps, notes.exploration_final_eps, notes.exploration_decay) == (1.0, 0.01, 0.995)
    assert notes.exploration_diversity == 0
    assert (notes.target_update_interval, notes.target_update_unit) == (10, "episodes")
    assert (notes.embedding_dim, notes.hidden_dims, notes.log_interval) == (8, (256, 128), 10)
    assert (notes.alpha, notes.weight_lr) == (1.5, 0.01)


def test_preset_notes_literal_is_the_experiment_of_the_notes():
    literal, notes = PRESETS["notes-literal"], PRESETS["notes"]
    assert (literal.tasks, literal.double_q) == (("Standard", "WindyUngated", "Heavy"), False)
    assert (literal.warmup_steps, literal.weight_floor, literal.weight_steps) == (1, 0.0, "plain")
    assert (literal.episodes_per_task, literal.learning_rate) == (notes.episodes_per_task, notes.learning_rate)
    assert (literal.memory_angle, notes.memory_angle) == (0.0, 0.0)


def test_episodes_per_task_stops_the_run(tmp_path):
    arguments = [*QUICK, "--results-dir", str(tmp_path), "--total-steps", "100000", "--episodes-per-task", "2"]
    shared_train.main(arguments)
    last = json.loads((tmp_path / "shared_dqn/seed_0/metrics.jsonl").read_text().splitlines()[-1])
    assert last["env_step"] < 5000
    assert last["time/episodes"] >= 5  # two of each task; the one that ends the run is not counted any more


def test_evaluation_summary():
    low, high = TaskResult.of([0.0, 200.0, 400.0], [False, True, True], 200.0), TaskResult.of([250.0], [None])
    assert high.success_rate is None
    assert (low.mean, low.standard_deviation, low.success_rate) == (200, 200, pytest.approx(2 / 3))
    assert high.standard_deviation == 0
    evaluation = Evaluation({"a": high, "b": low})
    assert (evaluation.mean, evaluation.worst_task) == (225, "b")


def test_a_new_process_runs_a_whole_training(tmp_path):
    command = [sys.executable, "-m", "experiments.shared_dqn.train", *QUICK[:-1], "--results-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}, check=True)
    assert done.stderr == ""
    assert "greedy" in done.stdout
    assert SharedDQNConfig(results_dir=tmp_path).run_dir.is_dir()
