"""An agent in a project that uses Stable-Baselines3: it does what SB3's DQN does, or says in one line what to do."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from mtrl import GradNorm
from mtrl.rl import (
    MultiTaskDQN,
    MultiTaskQPolicy,
    Task,
    TaskEvalCallback,
    TaskOneHot,
    evaluate_tasks,
    make_task_vec_env,
)

SMALL: dict[str, Any] = {
    "learning_starts": 40,
    "buffer_size": 400,
    "batch_size": 4,
    "policy_kwargs": {"net_arch": (8,)},
    "device": "cpu",
    "seed": 0,
}


class Toy(gymnasium.Env[Any, Any]):
    """Ten steps of noise; the reward is 1, and the return 10."""

    def __init__(
        self, dtype: Any = np.float32, actions: Any = 2, task: Any = None, render_mode: str | None = None
    ) -> None:
        high = 100 if np.issubdtype(dtype, np.integer) else 10.0
        self.observation_space = spaces.Box(-high, high, (3,), dtype)
        self.action_space = actions if isinstance(actions, spaces.Space) else spaces.Discrete(actions)
        self.render_mode = render_mode
        self.steps = 0
        if task is not None:
            self.task = task

    def _observe(self) -> Any:
        return (5 * self.np_random.standard_normal(3)).clip(-10, 10).astype(self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.steps += 1
        return self._observe(), 1.0, False, self.steps == 10, {}


def columns(*make: Callable[[], Any]) -> DummyVecEnv:
    return DummyVecEnv(list(make))


def tasks(*names: str, **kwargs: Any) -> Any:
    return make_task_vec_env([Task(name, partial(Toy, **kwargs)) for name in names], envs_per_task=2, seed=0)


def agent(env: Any, **kwargs: Any) -> MultiTaskDQN:
    return MultiTaskDQN(kwargs.pop("policy", "MlpPolicy"), env, **{**SMALL, **kwargs})


# ------------------------------------------------------------------------------------------------------------ logging


def test_long_names_that_begin_alike_do_not_end_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a task whose name is much longer than the table"
    model = agent(tasks(f"{long} 1", f"{long} 2", f"{long} 3"), balancer="pcgrad", verbose=1, conflict_interval=1)
    model.learn(400, log_interval=1)
    assert f"{long} 2" in capsys.readouterr().out


def test_readmes_example_runs_at_every_verbosity(capsys: pytest.CaptureFixture[str]) -> None:
    from envs import DEFAULT_TASKS  # noqa: PLC0415 - it registers the tasks

    for verbose in (0, 1, 2):
        env = make_task_vec_env(DEFAULT_TASKS, envs_per_task=4, seed=0, variant="aware")
        model = agent(env, balancer="gradnorm", balancer_kwargs={"alpha": 1.5}, verbose=verbose)
        model.learn(1_200, log_interval=1)
    assert "Standard" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_environments_of_every_dtype_are_learned_and_played(dtype: Any) -> None:
    if dtype == np.uint8:  # a Box of bytes in one dimension, which SB3 does not take for an image either
        env = columns(
            lambda: gymnasium.wrappers.TransformObservation(
                Toy(), lambda o: (o + 10).astype(dtype), spaces.Box(0, 255, (3,), dtype)
            )
        )
    else:
        env = columns(lambda: Toy(dtype))
    theirs = DQN("MlpPolicy", env, buffer_size=400, learning_starts=40, seed=0).learn(80)
    model = agent(env).learn(80)
    assert model._n_updates > 0
    observation = env.reset()
    for of in (theirs, model):
        action, _ = of.predict(observation, deterministic=True)
        assert env.action_space.contains(action[0])


@pytest.mark.parametrize("convert", [np.float64, lambda o: o.astype(np.float64), lambda o: o.astype(np.int64), list])
def test_predict_takes_what_sb3_takes(convert: Any) -> None:
    env = columns(Toy)
    model, observation = agent(env), env.reset()[0]
    expected, _ = model.predict(np.round(observation), deterministic=True)
    action, _ = model.predict(convert(np.round(observation)), deterministic=True)
    assert action == expected
    assert action.shape == DQN("MlpPolicy", env, buffer_size=10).predict(convert(observation))[0].shape


# ------------------------------------------------------------------------------------------------------------- saving


class OwnPolicy(MultiTaskQPolicy):
    """A policy class of a user's."""


def test_a_learning_rate_that_has_fallen_to_zero_is_saved_and_loaded(tmp_path: Path) -> None:
    model = agent(columns(Toy), learning_rate=lambda remaining: 1e-3 * remaining).learn(80)
    model.save(tmp_path / "m")
    again = MultiTaskDQN.load(tmp_path / "m", env=columns(Toy), learning_rate=1e-3)
    again.learn(80)
    assert again.settings.learning_rate == 1e-3
    assert MultiTaskDQN.load(tmp_path / "m").settings.learning_rate == 0


@pytest.mark.parametrize("kind", [str, Path])
def test_a_name_without_an_ending_gets_the_one_that_sb3_gives(kind: Any, tmp_path: Path) -> None:
    env = columns(Toy)
    agent(env).save(kind(tmp_path / "ours"))
    DQN("MlpPolicy", env, buffer_size=10).save(kind(tmp_path / "theirs"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.zip", "theirs.zip"]


def test_a_policy_class_of_ones_own_is_asked_for_when_the_model_is_loaded(tmp_path: Path) -> None:
    model = agent(columns(Toy), policy=OwnPolicy)
    model.save(tmp_path / "m.zip")
    with pytest.raises(ValueError, match=r"OwnPolicy; give custom_objects"):
        MultiTaskDQN.load(tmp_path / "m.zip")
    again = MultiTaskDQN.load(tmp_path / "m.zip", custom_objects={"policy_class": OwnPolicy})
    assert type(again.policy) is OwnPolicy
    with pytest.raises(ValueError, match=r"unknown custom object 'lr_schedule'"):
        MultiTaskDQN.load(tmp_path / "m.zip", custom_objects={"lr_schedule": None})


@pytest.mark.parametrize("kind", [str, Path, "dict"])
def test_set_parameters_takes_what_sb3_takes(kind: Any, tmp_path: Path) -> None:
    trained, fresh = (
        agent(columns(Toy), balancer="gradnorm").learn(80),
        agent(columns(Toy), balancer="gradnorm", seed=1),
    )
    trained.save(tmp_path / "m.zip")
    fresh.set_parameters(trained.get_parameters() if kind == "dict" else kind(tmp_path / "m.zip"))
    for ours, theirs in zip(fresh.policy.parameters(), trained.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_balancer_that_cannot_be_saved_is_refused_before_the_training(tmp_path: Path) -> None:
    model = agent(columns(Toy), balancer=GradNorm(1))
    with pytest.raises(ValueError, match=r"^CheckpointCallback saves models.*give the balancer's name"):
        model.learn(80, callback=[CheckpointCallback(10, str(tmp_path))])
    assert model.num_timesteps == 0
    model.learn(80)


# -------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("of_columns", "message"),
    [
        ((None, "b"), "column 0 has no attribute `task`"),
        (("a", None), "column 1 has no attribute `task`"),
        ((object(), object()), "has a task without a name, object"),
        (("a", "b", "a"), "equally many per task and task after task"),
    ],
)
def test_tasks_are_not_guessed(of_columns: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent(columns(*(partial(Toy, task=task) for task in of_columns)))


@pytest.mark.parametrize("of_columns", [("a", "b"), (1, 2), (np.int64(3), np.int64(4))])
def test_plain_data_names_a_task(of_columns: tuple[Any, ...]) -> None:
    assert agent(columns(*(partial(Toy, task=task) for task in of_columns))).task_names == tuple(map(str, of_columns))


def test_places_in_the_one_hot_belong_to_one_task_each() -> None:
    def column(task: str, index: int) -> Any:
        return lambda: TaskOneHot(Toy(task=task), index, 2)

    assert agent(columns(column("a", 1), column("b", 0))).one_hot_size == 2
    with pytest.raises(ValueError, match=r"the tasks a and b have the same place in the one-hot, 0$"):
        agent(columns(column("a", 0), column("b", 0)))
    with pytest.raises(ValueError, match=r"^the columns of one task must have the same place"):
        agent(columns(column("a", 0), column("a", 1)))
    for index in (-1, 2):
        with pytest.raises(ValueError, match=rf"^index is {index}; it must be between 0 and 1$"):
            TaskOneHot(Toy(), index, 2)


def test_every_columns_spaces_are_compared() -> None:
    with pytest.raises(
        ValueError, match=r"same action_space, but column 1 has Discrete\(3\) and column 0 has Discrete\(2\)"
    ):
        agent(columns(partial(Toy, task="a"), partial(Toy, actions=3, task="b")))


def test_actions_that_do_not_start_at_0_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must start at 0"):
        agent(columns(lambda: Toy(actions=spaces.Discrete(3, start=1))))


@pytest.mark.parametrize("late", [False, True])
def test_vec_normalize_is_refused(late: bool) -> None:
    give = agent(columns(Toy)).set_env if late else agent
    with pytest.raises(ValueError, match=r"^VecNormalize is not supported"):
        give(VecNormalize(columns(Toy)))


def test_vector_environments_of_gymnasium_are_refused_with_what_to_use() -> None:
    with pytest.raises(ValueError, match=r"make_task_vec_env"):
        agent(gymnasium.make_vec("CartPole-v1", num_envs=2))


def test_dictionaries_are_refused_with_a_way_out() -> None:
    class Dictionaries(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Dict({"a": self.observation_space})  # type: ignore[assignment]

        def _observe(self) -> Any:
            return {"a": super()._observe()}

    for env in (Dictionaries(), columns(Dictionaries)):
        with pytest.raises(ValueError, match=r"FlattenObservation"):
            agent(env)
    assert agent(gymnasium.wrappers.FlattenObservation(Dictionaries())).learn(60)._n_updates > 0


def test_columns_without_a_monitor_are_given_one() -> None:
    model = agent(columns(partial(Toy, task="a"), partial(Toy, task="b"))).learn(80)
    assert model.recent_returns == [10.0, 10.0]
    watched = VecMonitor(columns(partial(Toy, task="a")))
    assert agent(watched).env is watched


def test_the_error_of_an_environment_names_a_task_that_is_a_string() -> None:
    class Failing(Toy):
        def step(self, action: Any) -> Any:
            raise RuntimeError("no power")

    env = make_task_vec_env([Task("lift", lambda render_mode: Failing())], envs_per_task=1)
    env.envs[0].task = "lift"  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"environment 0 of task lift .*no power"):
        agent(env).learn(10)


# --------------------------------------------------------------------------------------------------------- evaluation


def test_every_task_is_evaluated() -> None:
    env = tasks("a", "b", "c")
    model = agent(env)
    found = evaluate_tasks(model, env, episodes=5)
    assert {name: of.returns for name, of in found.items()} == dict.fromkeys("abc", (10.0,) * 5)
    with pytest.raises(ValueError, match=r"^episodes is 0"):
        evaluate_tasks(model, env, episodes=0)


def test_the_callback_evaluates_every_task_and_keeps_the_best_model(tmp_path: Path) -> None:
    callback = TaskEvalCallback(tasks("a", "b"), eval_freq=10, episodes=1, best_model_save_path=tmp_path / "best")
    agent(tasks("a", "b")).learn(80, callback=callback)
    assert {name: of.mean for name, of in callback.results.items()} == {"a": 10.0, "b": 10.0}
    assert callback.best_mean == 10
    assert MultiTaskDQN.load(tmp_path / "best" / "best_model.zip").num_timesteps == 40  # the first of equal ones


def test_the_shared_callback_is_warned_about(recwarn: pytest.WarningsRecorder) -> None:
    agent(tasks("a", "b")).learn(40, callback=EvalCallback(tasks("a", "b"), eval_freq=10**6))
    assert [str(w.message) for w in recwarn if "TaskEvalCallback" in str(w.message)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*TaskEvalCallback.*")
        agent(tasks("a")).learn(40, callback=EvalCallback(tasks("a"), eval_freq=10**6))


# ----------------------------------------------------------------------------------------------------------- the rest


def test_a_model_that_goes_on_without_its_replay_collects_again_first(tmp_path: Path) -> None:
    agent(columns(Toy)).learn(80).save(tmp_path / "m.zip")
    model = MultiTaskDQN.load(tmp_path / "m.zip", env=columns(Toy))
    updates = model._n_updates
    model.learn(36, reset_num_timesteps=False)
    assert model._n_updates == updates
    model.learn(40, reset_num_timesteps=False)
    assert model._n_updates > updates


def test_a_replay_that_does_not_fit_into_memory_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*buffer_size.*")
        agent(columns(Toy), buffer_size=10_000)  # 10,000 transitions of 9 floats
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=360_000))
        agent(columns(Toy), buffer_size=10_000)
        with pytest.raises(UserWarning, match=r"^the replay of 1 x 10,010 transitions takes 0\.00 GB"):
            agent(columns(Toy), buffer_size=10_010)


def test_attributes_have_the_names_that_sb3_gives_them() -> None:
    model = agent(columns(Toy), buffer_size=1e2).learn(60)
    assert model.q_net is model.policy.q_net
    assert model.q_net_target is model.policy.q_net_target
    assert model.replay_buffer.size() == len(model.replay_buffer) > 0


def test_unknown_policy_arguments_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^unknown policy_kwargs 'activation_fn'; known are embedding_dim, net_arch"):
        agent(columns(Toy), policy_kwargs={"activation_fn": torch.nn.ReLU})
    with pytest.raises(ValueError, match=r"^unknown policy_kwargs 'net_ach'; did you mean 'net_arch'\?$"):
        agent(columns(Toy), policy_kwargs={"net_ach": [8]})
