"""Soft actor-critic by the commands: every method trains it, and what follows a training knows it."""

import dataclasses
import inspect
import itertools
import json
from typing import get_type_hints

import pytest
import torch
import tyro

import envs
import mtrl.rl
from experiments import analyze_results
from experiments.analysis.runs import load_runs
from experiments.methods import METHODS
from experiments.training.algorithms import SACTrainConfig
from mtrl.balancers import make_balancer
from mtrl.rl.settings import SACSettings
from tests.support import fails

METHODS_OF_SAC = [name for name, method in METHODS.items() if method.sac_config]
QUICK = [
    *("--algorithm", "sac", "--total-steps", "900", "--envs-per-task", "1", "--learning-starts", "300"),
    *("--batch-size", "8", "--gradient-steps", "1", "--eval-interval", "450", "--eval-episodes", "1"),
    *("--final-episodes", "1", "--quiet", "--no-tensorboard"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name, *words in (
        ("shared_dqn",),
        ("gradnorm",),
        ("rgb", "--variant", "blind"),
        ("pcgrad", "--actor-balancer", "same", "--label", "both"),
        ("torchjd", "--aggregator", "MGDA", "--heads", "per_task"),
    ):
        assert METHODS[name].train([*QUICK, *words, "--results-dir", str(folder)]) == 0
    return folder


def test_runs_are_filed_apart_from_those_of_dqn(results):
    runs, broken = load_runs(results)
    assert not broken
    assert runs.keys() == {*("shared_sac", "gradnorm_sac", "rgb_sac_blind", "pcgrad_sac-both", "torchjd_mgda_sac")}
    for run in itertools.chain(*runs.values()):
        assert run.config["agent"] == "MultiTaskSAC"
        assert run.evaluation["parameters"] > 3 * 256 * 128  # an actor and two critics
        assert list(run.evaluation["tasks"]) == list(SACTrainConfig.tasks)


def test_metrics_hold_what_both_networks_did(results):
    lines = [json.loads(line) for line in (results / "gradnorm_sac/seed_0/metrics.jsonl").read_text().splitlines()]
    names = set().union(*lines)
    for task in SACTrainConfig.tasks:
        parts = ("return", "loss", "actor_loss", "ent_coef")
        assert {f"train/{task}/{part}" for part in parts} | {f"eval/{task}/return"} <= names
        assert f"balancer/{task}/weight" in names


def test_evaluate_plays_and_films_what_was_trained(results, tmp_path, capsys):
    words = ["--algorithm", "sac", "--results-dir", str(results), "--episodes", "1", "--task", "WindyContinuous"]
    words += ["--video-dir", str(tmp_path / "videos"), "--picture", str(tmp_path / "picture.png")]
    assert METHODS["gradnorm"].evaluate(words) == 0
    assert "gradnorm_sac, seed 0" in capsys.readouterr().out
    assert (tmp_path / "videos/WindyContinuous.mp4").stat().st_size > 1_000
    words = ["--algorithm", "sac", "--aggregator", "MGDA", "--results-dir", str(results), "--episodes", "1"]
    assert METHODS["torchjd"].evaluate(words) == 0


def test_evaluate_says_how_to_train_a_missing_run(results, capsys):
    words = ["--algorithm", "sac", "--seed", "3", "--results-dir", results]
    line = fails(METHODS["rgb"].evaluate, words, capsys)
    flags = f"--algorithm sac --variant aware --seed 3 --results-dir {results}"
    assert line.endswith(f"train it: python -m experiments.rgb.train {flags}\n")


def test_evaluate_names_the_algorithm_that_has_the_run(results, capsys):
    line = fails(METHODS["gradnorm"].evaluate, ["--tasks", "my_tasks:A b", "--results-dir", results], capsys)
    assert line.endswith(
        "; there is one of --algorithm sac; train it: python -m experiments.gradnorm.train --tasks 'my_tasks:A b' "
        f"--variant aware --seed 0 --results-dir {results}\n"
    )


def test_analysis_compares_with_equal_weights_of_the_same_algorithm(results, tmp_path, capsys):
    assert analyze_results.main(["--results-dir", str(results), "--output-dir", str(tmp_path / "out"), "--html"]) == 0
    capsys.readouterr()
    comparison = json.loads((tmp_path / "out/runs.json").read_text())
    assert "gradnorm_sac" in json.dumps(comparison)
    table = (tmp_path / "out/table.csv").read_text()
    assert [line for line in table.splitlines() if line.startswith("gradnorm_sac,") and line.endswith(",shared_sac")]


@pytest.mark.parametrize("name", METHODS_OF_SAC)
def test_every_setting_of_the_agent_is_a_flag_and_reaches_it(name):
    config = METHODS[name].sac_config_type(seed=5, gamma=0.5, target_entropy=-1.0)
    kwargs = config.agent_kwargs
    wanted = set(inspect.signature(mtrl.rl.MultiTaskSAC).parameters) - {
        *("policy", "env", "tensorboard_log", "verbose", "settings", "_init_setup_model")
    }
    assert kwargs.keys() == wanted | {field.name for field in dataclasses.fields(SACSettings)}
    assert (kwargs["seed"], kwargs["gamma"], kwargs["target_entropy"]) == (5, 0.5, -1.0)
    assert make_balancer(kwargs["critic_balancer"], 3, **kwargs["critic_balancer_kwargs"])
    assert (kwargs["actor_balancer"], kwargs["actor_balancer_kwargs"]) == ("equal", {})
    if config.for_negative_losses is None:
        same = dataclasses.replace(config, actor_balancer="same").agent_kwargs
        assert same["actor_balancer"] == kwargs["critic_balancer"]
        assert same["actor_balancer_kwargs"] == kwargs["critic_balancer_kwargs"]


@pytest.mark.parametrize("name", METHODS_OF_SAC)
def test_defaults_are_those_of_the_agent(name):
    config, agent = METHODS[name].sac_config_type(), SACSettings()
    assert config.tasks == envs.CONTINUOUS_TASKS
    elsewhere = {"memory_angle", "gradient_steps"}  # the agent asks the balancer; -1 updates can't be continued
    for field in dataclasses.fields(SACSettings):
        if field.name not in elsewhere:
            assert getattr(config, field.name) == getattr(agent, field.name), field.name


@pytest.mark.parametrize("name", METHODS_OF_SAC)
def test_both_algorithms_share_the_settings_of_a_run_and_of_the_method(name):
    method = METHODS[name]
    kinds = [get_type_hints(kind, include_extras=True) for kind in (method.config_type, method.sac_config_type)]
    dqn, sac = (
        {key for key, kind in hints.items() if tyro.conf.Fixed not in getattr(kind, "__metadata__", ())}
        for hints in kinds
    )
    of_sac = {"ent_coef", "target_entropy", "actor_balancer"}
    assert sac - dqn == of_sac
    assert all("exploration" in key or key in OF_DQN for key in dqn - sac)


OF_DQN = {"preset", "double_q", "td_loss", "huber_delta", "target_update_unit", "agent_settings"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rgb --ent-coef 0.1", "argument --ent-coef is for --algorithm sac only"),
        ("rgb --algorithm sac --no_double-q", "argument --no-double-q is for --algorithm dqn only"),
        ("rgb --algorithm=sac --preset=notes", "argument --preset is for --algorithm dqn only"),
        ("rgb --algorithm ppo", "argument --algorithm: invalid choice 'ppo'; choose from dqn, sac"),
        ("brc --algorithm sac", "unknown algorithm 'sac'; choose from dqn"),
        ("independent_dqn --algorithm sac", "unknown algorithm 'sac'; choose from dqn"),
        (
            "gradnorm --algorithm sac --actor-balancer same",
            "actor_balancer is 'same', but gradnorm needs positive losses and those of an actor may be negative; give "
            "--rate-from return or --actor-balancer equal",
        ),
        (
            "aim --algorithm sac --actor-balancer same",
            "actor_balancer is 'same', but aim needs positive losses and those of an actor may be negative; give "
            "--progress-weight 0 or --actor-balancer equal",
        ),
        (
            "rgb --algorithm sac --ent-coef auto_0",
            "ent_coef is 'auto_0'; it must be a finite number of at least 0, 'auto', or 'auto_' and a finite number "
            "above 0",
        ),
        pytest.param(
            "rgb --algorithm sac --device cuda",
            "device is 'cuda', and PyTorch finds no GPU; choose cpu or auto",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
        ("rgb --algorithm sac --target-entropy inf", "target_entropy is inf; it must be a finite number or 'auto'"),
        (
            "rgb --algorithm sac --tasks Standard",
            "actions are in Discrete(4); MultiTaskSAC acts in a Box with bounds only; MultiTaskDQN acts in Discrete(n)",
        ),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method, *flags = words.split()
    assert fails(METHODS[method].train, flags, capsys) == f"experiments.{method}.train: {message}\n"
    assert list(tmp_path.iterdir()) == []
