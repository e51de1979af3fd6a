"""Searches of settings: what is proposed, that a search goes on where it was, and that its results can be used."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.methods import METHODS
from experiments.sweep.__main__ import main as sweep
from experiments.training.search import Among, Between, Weights
from experiments.tune import tuning
from experiments.tune.__main__ import main
from tests.experiments.test_methods import fails

SMALL = ("--envs-per-task", "2", "--learning-starts", "100", "--gradient-steps", "1", "--final-episodes", "1")
RUN = ("--", *SMALL, "--buffer-size", "3000", "--no-tensorboard")
SEARCH = ("--total-steps", "600", "--seeds", "0", "1", "--together", "2")


@pytest.fixture
def alone(monkeypatch):
    """No Ray, whose start takes longer than the search."""
    monkeypatch.setitem(sys.modules, "ray", None)


def search(folder, *words):
    return main([*SEARCH, "--results-dir", str(folder), *words, *RUN])


def scores(folder):
    return [trial["score"] for trial in json.loads((folder / "study.json").read_text())["trials"]]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        assert search(folder, "--methods", "memory", "--trials", "3") == 0
    return folder


def test_the_first_trial_has_the_defaults_and_the_best_is_kept(found):
    study = json.loads((found / "memory_blind/study.json").read_text())
    first = study["trials"][0]["settings"]
    assert first == {"learning_rate": 5e-4, "batch_size": 64, "angle": 0.8, "decay": 0.9}
    best = max(study["trials"], key=lambda trial: trial["score"])
    assert json.loads((found / "memory_blind/best.json").read_text()) == best["settings"]
    for trial in study["trials"]:
        assert set(trial["scores"]) == {"0", "1"}
        assert trial["score"] == pytest.approx(np.mean(list(trial["scores"].values())))
    assert np.asarray(Image.open(found / "memory_blind/trials.png")).std() > 5


def test_a_run_of_a_trial_has_its_settings(found):
    for number in range(3):
        folder = found / f"memory_blind/trial_{number:02}"
        wanted = json.loads((folder / "settings.json").read_text())
        for seed in (0, 1):
            settings = json.loads((folder / f"memory_blind/seed_{seed}/config.json").read_text())["settings"]
            assert wanted.items() <= settings.items()
            assert settings["seed"] == seed


def test_a_search_that_lost_trials_ends_as_if_it_had_not(found, alone, tmp_path):
    folder = shutil.copytree(found, tmp_path / "tuning")
    expected = scores(folder / "memory_blind")
    shutil.rmtree(folder / "memory_blind/trial_02")
    shutil.rmtree(folder / "memory_blind/trial_01/memory_blind/seed_1")
    (folder / "memory_blind/study.json").unlink()
    assert search(folder, "--methods", "memory", "--trials", "3") == 0
    assert scores(folder / "memory_blind") == expected


def test_more_trials_begin_as_fewer_did(found, alone, tmp_path):
    folder = shutil.copytree(found, tmp_path / "tuning")
    expected = scores(folder / "memory_blind")
    assert search(folder, "--methods", "memory", "--trials", "4") == 0
    assert scores(folder / "memory_blind")[:3] == expected


def test_another_search_in_the_same_folder_is_refused(found, alone, tmp_path, capsys):
    folder = shutil.copytree(found, tmp_path / "tuning")
    with pytest.raises(SystemExit) as stop:
        search(folder, "--methods", "memory", "--trials", "3", "--sampler-seed", "5")
    assert stop.value.code == 2
    assert "was proposed by another search" in capsys.readouterr().err


def test_the_best_settings_go_into_a_training_and_a_sweep(found, tmp_path, capsys):
    best = json.loads((found / "memory_blind/best.json").read_text())
    words = ["--settings", str(found / "memory_blind/best.json"), "--batch-size", "9", "--total-steps", "600"]
    assert METHODS["memory"].train([*words, *RUN[1:], "--quiet", "--results-dir", str(tmp_path)]) == 0
    settings = json.loads((tmp_path / "memory/seed_0/config.json").read_text())["settings"]
    assert {**best, "batch_size": 9}.items() <= settings.items()  # a flag takes precedence

    runs = tuning.plan(["memory"], ["blind"], [0, 1], tmp_path, [], "sweep", found)
    assert {run.config.learning_rate for run in runs} == {best["learning_rate"]}
    with pytest.raises(ValueError, match=r"argument --tuned: there is no '.*memory/best\.json'"):
        tuning.plan(["memory"], ["aware"], [0], tmp_path, [], "sweep", found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"learning_rat": 1}', "has an unknown setting 'learning_rat'; did you mean learning_rate?"),
        ('{"settings": "x"}', "sets settings, which does not decide what is learned"),
        ('{"existing": "replace"}', "sets existing, which does not decide what is learned"),
        ('{"hidden_dims": [8, "--existing", "replace"]}', "has an impossible value of hidden_dims"),
        ('{"gamma": "--quiet"}', "has an impossible value of gamma"),
        ('{"batch_size": "many"}', "argument --batch-size: invalid value 'many'"),
        ('{"batch_size": 0}', "batch_size is 0"),
        ('{"batch_size": ', "it is not JSON"),
        ("[1]", "holds no object of settings by name"),
        ("[" * 100_000, "it is not JSON"),
        (None, "No such file or directory"),
    ],
)
def test_a_bad_file_of_settings_is_one_line(content, message, tmp_path, capsys):
    file = tmp_path / "settings.json"
    if content is not None:
        file.write_text(content)
    results = tmp_path / "runs"
    line = fails(METHODS["rgb"].train, ["--settings", file, "--results-dir", results], capsys)
    assert message in line
    assert not results.exists()


def test_values_of_every_kind_come_from_a_file(tmp_path):
    file = tmp_path / "settings.json"
    content = {"hidden_dims": [8, 8], "layer_norm": False, "max_grad_norm": None, "gamma": 0.5, "tasks": ["Windy"]}
    file.write_text(json.dumps(content))
    words = ["--settings", str(file), "--total-steps", "300", *RUN[1:], "--quiet", "--results-dir", str(tmp_path)]
    assert METHODS["shared_dqn"].train(words) == 0
    settings = json.loads((tmp_path / "shared_dqn/seed_0/config.json").read_text())["settings"]
    assert content.items() <= settings.items()


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_of_every_method_lie_in_its_search_space(method):
    config = METHODS[method].presets["default"]
    for name, space in config.search_space.items():
        value, point = getattr(config, name), space.point(name, getattr(config, name))
        chosen = space.suggest(Fixed(point), name)
        assert chosen == ([1.0] * 3 if value is None else value)


class Fixed:
    """A trial that chooses what it is told, and checks that it may."""

    def __init__(self, point):
        self.point = point

    def suggest_float(self, name, low, high, *, log=False):
        assert low <= self.point[name] <= high
        return self.point[name]

    def suggest_categorical(self, name, choices):
        assert self.point[name] in choices
        return self.point[name]


def test_spaces_round_and_normalise():
    assert Between(1e-4, 1, log=True).suggest(Fixed({"x": 0.123456}), "x") == 0.1235
    assert Among((1, 2)).suggest(Fixed({"x": 2}), "x") == 2
    weights = Weights(3).suggest(Fixed({"w[0]": 4.0, "w[1]": 0.25, "w[2]": 1.0}), "w")
    assert sum(weights) == pytest.approx(3, abs=1e-3)
    assert weights[0] / weights[1] == pytest.approx(16, rel=1e-2)


def test_the_cost_is_stated_and_nothing_written(tmp_path, capsys):
    assert search(tmp_path / "tuning", "--methods", "shared_dqn", "rgb", "--trials", "12", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "rgb_blind: 12 trials x 2 seeds x 600 steps" in printed
    assert "searches learning_rate, batch_size, mu, lambd, lr_inner" in printed
    assert not (tmp_path / "tuning").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "rbg"], "unknown method 'rbg'"),
        (["--methods", "rgb", "--trials", "0"], "trials is 0"),
        (["--methods", "rgb", "--seeds", "x"], "seeds: 'x' is neither"),
        (["--methods", "rgb", "--", "--seed", "3"], "argument --seed after '--'"),
        *(
            (
                ["--methods", "rgb", "--", *words],
                "argument --batch-size after '--': the search of rgb_blind sets learning_rate, batch_size, mu",
            )
            for words in (["--batch-size", "16"], ["--batch_size=64"])
        ),
        (["--methods", "rgb", "--", "--settings", "mine.json"], "argument --settings after '--': a trial has a file"),
    ],
)
def test_a_wrong_search_is_one_line(words, message, tmp_path, capsys):
    assert message in fails(main, ["--results-dir", tmp_path / "tuning", *words], capsys)
    assert not (tmp_path / "tuning").exists()


def test_without_optuna_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    line = fails(main, ["--methods", "rgb", "--results-dir", tmp_path / "tuning"], capsys)
    assert "pip install 'mtrl-balance[tune]'" in line


def test_an_evaluation_of_another_run_does_not_count(found, alone, tmp_path, capsys):
    folder = shutil.copytree(found, tmp_path / "tuning")
    of_another = folder / "memory_blind/trial_00/memory_blind/seed_0/evaluation.json"
    shutil.copy(of_another, folder / "memory_blind/trial_01/memory_blind/seed_0/evaluation.json")
    with pytest.raises(SystemExit) as stop:
        search(folder, "--methods", "memory", "--trials", "3")
    assert stop.value.code == 2
    assert "it belongs to a run with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[" * 100_000, "{", None])
def test_a_strangers_settings_of_a_trial_are_one_line(content, found, alone, tmp_path, capsys):
    folder = shutil.copytree(found, tmp_path / "tuning")
    file = folder / "memory_blind/trial_00/settings.json"
    file.unlink()
    os.mkfifo(file) if content is None else file.write_text(content)
    with pytest.raises(SystemExit) as stop:
        search(folder, "--methods", "memory", "--trials", "3")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "settings.json" in line


def test_a_log_that_is_a_link_is_not_written_to(found, alone, tmp_path, capsys):
    folder = shutil.copytree(found, tmp_path / "tuning")
    shutil.rmtree(folder / "memory_blind/trial_00/memory_blind/seed_0")
    log, victim = folder / "memory_blind/trial_00/memory_blind/seed_0.log", tmp_path / "victim"
    victim.write_text("precious")
    log.unlink()
    log.symlink_to(victim)
    with pytest.raises(SystemExit) as stop:
        search(folder, "--methods", "memory", "--trials", "3")
    assert stop.value.code == 2
    assert "is a symbolic link" in capsys.readouterr().err
    assert victim.read_text() == "precious"


def test_a_sweep_takes_the_settings_of_a_search(found, capsys):
    words = ["--methods", "memory", "--variants", "blind", "--seeds", "0", "--tuned", str(found), "--dry-run"]
    assert sweep(words) == 0
    assert "1 runs, 0 of them finished" in capsys.readouterr().out
