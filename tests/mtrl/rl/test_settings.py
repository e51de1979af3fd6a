"""The settings of an agent: one list that is its signature, its check, its file and its flags."""

import inspect
import io
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from agents import BRC, MultiTaskDQN, load_agent
from agents.settings import BRCOptions, BRCSettings
from experiments.methods import METHODS
from experiments.training.algorithms import DQNTrainConfig
from experiments.training.make_agent import make_agent as make_agent_of_run
from mtrl import DirectionMemory, checkpoint, make_balancer
from mtrl.rl.settings import MEMORY_ANGLE, DQNOptions, DQNSettings, ReplayOptions, ReplaySettings
from tests.support import make_agent

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("settings", "options"),
    [(ReplaySettings, ReplayOptions), (DQNSettings, DQNOptions), (BRCSettings, BRCOptions)],
)
def test_the_dictionary_for_type_checkers_lists_the_same_names_and_types(settings, options):
    kinds = get_type_hints(settings)
    assert get_type_hints(options) == {field.name: kinds[field.name] for field in fields(settings)}


def test_a_type_checker_flags_a_wrong_name_and_a_wrong_type(tmp_path):
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "from agents import BRC\n"
        "from mtrl.rl import MultiTaskDQN\n"
        "MultiTaskDQN('MlpPolicy', None, learning_rate=1e-3, n_step=5, double_q=False)\n"
        "BRC('MlpPolicy', None, learning_rate=lambda remaining: 1e-3 * remaining, weight_decay=0.1)\n"
        "MultiTaskDQN('MlpPolicy', None, learning_rat=1)\n"
        "MultiTaskDQN('MlpPolicy', None, n_step='three')\n"
        "MultiTaskDQN('MlpPolicy', None, td_loss='l1')\n"
        "MultiTaskDQN('MlpPolicy', None, weight_decay=0.1)\n"
        "BRC('MlpPolicy', None, weight_deca=0.1)\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports", "silent", "--ignore-missing-imports", str(snippet)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    flagged = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert flagged == ["5", "6", "7", "8", "9"], done.stdout + done.stderr
    assert 'Unexpected keyword argument "learning_rat"' in done.stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1e-3}, "unknown setting 'learning_rat'; did you mean 'learning_rate'?"),
        ({"polcy_kwargs": {}}, "unknown setting 'polcy_kwargs'; did you mean 'policy_kwargs'?"),
        ({"weight_decay": 0.1}, "unknown setting 'weight_decay'; "),
        ({"n_step": 1.5}, "n_step is 1.5; it must be an integer, between 1 and 1000"),
        ({"n_step": "3"}, "n_step is '3'; it must be an integer, between 1 and 1000"),
        ({"n_step": True}, "n_step is True; it must be an integer, between 1 and 1000"),
        ({"gamma": "high"}, "gamma is 'high'; it must be a number, between 0 and 1"),
        ({"gamma": None}, "gamma is None; it must be a number, between 0 and 1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be at least 0 and finite"),
        ({"double_q": 1}, "double_q is 1; it must be True or False"),
        ({"td_loss": ["huber"]}, "unknown td_loss ['huber']; choose from huber, mse"),
        ({"exploration_diversity": float("inf")}, "exploration_diversity is inf; it must be at least 0 and finite"),
    ],
)
def test_an_unknown_or_ill_typed_setting_is_answered_in_one_line(settings, message):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        make_agent(**settings)
    assert str(error.value).startswith(message)


def test_a_float_without_a_fraction_is_taken_for_an_integer():
    agent = make_agent(buffer_size=1e5, learning_starts=np.int64(50))
    assert agent.settings.buffer_size == agent.buffer_size == 100_000
    assert type(agent.buffer_size) is type(agent.settings.learning_starts) is int
    assert DQNTrainConfig(total_steps=1e5).total_steps == 100_000


def test_infinity_is_a_limit_that_never_applies():
    assert make_agent(max_grad_norm=float("inf"), huber_delta=float("inf")).settings.huber_delta == float("inf")


def test_settings_are_kept_saved_and_changed(tmp_path):
    agent = make_agent(BRC, n_step=5, weight_decay=0.5, exploration_decay=0.9, on_nonfinite="skip")
    assert agent.settings == BRCSettings(
        learning_starts=60,
        buffer_size=3_000,
        batch_size=8,
        learning_rate_decay=0,
        n_step=5,
        weight_decay=0.5,
        exploration_decay=0.9,
        on_nonfinite="skip",
        memory_angle=0.8,  # the default for a balancer without a memory of its own
    )
    with pytest.raises(FrozenInstanceError):
        agent.settings.n_step = 2
    agent.batch_size = 16  # an attribute of Stable-Baselines3
    agent.save(tmp_path / "agent.zip")
    assert load_agent(tmp_path / "agent.zip").settings == replace(agent.settings, batch_size=16)
    loaded = load_agent(tmp_path / "agent.zip", n_step=2, batch_size=8)
    assert loaded.settings == replace(agent.settings, n_step=2)


def test_a_schedule_is_saved_as_its_present_value(tmp_path):
    agent = make_agent(learning_rate=lambda remaining: 1e-3 * (1 + remaining)).learn(300)
    agent.save(tmp_path / "agent.zip")
    assert MultiTaskDQN.load(tmp_path / "agent.zip").settings.learning_rate == pytest.approx(1e-3)


def test_stable_baselines3_finds_its_attributes():
    agent = make_agent(gamma=0.9, tau=0.5, learning_starts=7, gradient_steps=3, train_freq=2, stats_window_size=9)
    for name in ("gamma", "tau", "learning_starts", "gradient_steps", "batch_size", "buffer_size", "learning_rate"):
        assert getattr(agent, name) == getattr(agent.settings, name), name
    assert agent.train_freq.frequency == agent.settings.train_freq == 2
    assert agent.ep_info_buffer is None
    assert agent._stats_window_size == 9


def test_a_training_run_has_the_settings_of_the_agent():
    assert asdict(DQNSettings(memory_angle=0.8)).items() <= asdict(DQNTrainConfig()).items()
    assert {field.name for field in fields(DQNTrainConfig) if field.metadata.get("resumable")} >= {
        *("on_nonfinite", "results_dir", "quiet", "checkpoint_interval", "step_timeout", "tensorboard", "wandb"),
    }


@pytest.mark.parametrize(
    ("balancer", "angle"), [("equal", 0.8), ("gradnorm", 0.8), ("torchjd:UPGrad", 0.8), ("rgb", 0.0), ("memory", 0.0)]
)
def test_updates_turn_towards_past_ones_unless_the_balancer_has_a_memory(balancer, angle):
    agent = make_agent(balancer=balancer)
    assert agent.settings.memory_angle == angle
    assert (agent.update.memory is not None) == (angle > 0)
    assert make_agent(balancer=balancer, memory_angle=0.3).settings.memory_angle == 0.3
    assert make_agent(balancer=make_balancer(balancer, 3)).settings.memory_angle == angle


def test_the_default_angle_is_that_of_the_memory_itself():
    assert inspect.signature(DirectionMemory).parameters["angle"].default == MEMORY_ANGLE


@pytest.mark.parametrize("method", METHODS)
def test_a_method_writes_down_the_angle_that_its_agent_would_choose(method):
    config = METHODS[method].presets["default"]
    with make_agent_of_run(replace(config, learning_starts=60, buffer_size=3_000)) as (given, env):
        left = {name: value for name, value in config.agent_kwargs.items() if name != "memory_angle"}
        chosen = type(given)("MlpPolicy", env, **left).settings.memory_angle
    assert config.memory_angle == given.settings.memory_angle == chosen


def test_a_model_from_before_there_was_a_memory_goes_on_without_one():
    agent = make_agent()
    state = agent.saved_state()
    del state["settings"]["memory_angle"]
    file = io.BytesIO()
    checkpoint.save(file, {name: part for name, part in state.items() if name != "memory"})
    file.seek(0)
    assert MultiTaskDQN.load(file).settings.memory_angle == 0
