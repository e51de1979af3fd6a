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
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

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
from tests.support import TINY


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
    return MultiTaskDQN(kwargs.pop("policy", "MlpPolicy"), env, **{**TINY, **kwargs})


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
    with pytest.raises(
        ValueError, match=r"learning_rate is no custom object here; give it as load\(..., learning_rate="
    ):
        MultiTaskDQN.load(tmp_path / "m.zip", custom_objects={"learning_rate": 0.0})


def test_an_observation_without_the_one_hot_is_answered_with_what_adds_it() -> None:
    env = make_task_vec_env(["CartPole-v1"], 1, seed=0, variant="aware")
    with pytest.raises(ValueError, match=r"one-hot of 1 numbers in its observations, which mtrl\.rl\.TaskOneHot adds"):
        agent(env).predict(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="Unexpected observation shape") as caught:
        agent(make_task_vec_env(["CartPole-v1"], 1, seed=0, variant="blind")).predict(np.zeros(7, np.float32))
    assert "one-hot" not in str(caught.value)


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
        (("a", "b", "a"), "columns must come task after task, not a, b, a"),
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


def test_actions_that_do_not_start_at_0_are_taken_from_where_they_start() -> None:
    env = columns(lambda: Toy(actions=spaces.Discrete(3, start=1)))  # `Toy` asserts that its space has the action
    model = agent(env).learn(200)
    assert set(model.replay_buffer.sample(64).actions.tolist()) == {0, 1, 2}
    assert model.predict(env.reset(), deterministic=True)[0] in (1, 2, 3)


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
    found = evaluate_tasks(model, env, n_eval_episodes=5)
    assert {name: of.returns for name, of in found.items()} == dict.fromkeys("abc", (10.0,) * 5)
    with pytest.raises(ValueError, match=r"^n_eval_episodes is 0"):
        evaluate_tasks(model, env, n_eval_episodes=0)


def test_the_callback_evaluates_every_task_and_keeps_the_best_model(tmp_path: Path) -> None:
    best = tmp_path / "best"
    callback = TaskEvalCallback(tasks("a", "b"), eval_freq=10, n_eval_episodes=1, best_model_save_path=best)
    agent(tasks("a", "b")).learn(80, callback=callback)
    assert {name: of.mean for name, of in callback.results.items()} == {"a": 10.0, "b": 10.0}
    assert callback.best_mean_reward == callback.last_mean_reward == 10
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
    with pytest.raises(
        ValueError, match=r"^unknown policy_kwargs 'optimizer_class'; did you mean 'optimizer_kwargs'\?$"
    ):
        agent(columns(Toy), policy_kwargs={"optimizer_class": torch.optim.SGD})
    with pytest.raises(ValueError, match=r"^unknown policy_kwargs 'share_features_extractor'; did you mean"):
        agent(columns(Toy), policy_kwargs={"share_features_extractor": True})
    with pytest.raises(ValueError, match=r"^unknown optimizer_kwargs 'amsgrad'; known are betas, eps, weight_decay$"):
        agent(columns(Toy), policy_kwargs={"optimizer_kwargs": {"amsgrad": True}})
    with pytest.raises(ValueError, match=r"^unknown policy_kwargs 'net_ach'; did you mean 'net_arch'\?$"):
        agent(columns(Toy), policy_kwargs={"net_ach": [8]})


def test_a_second_training_of_a_loaded_model_learns(tmp_path: Path) -> None:
    agent(columns(Toy)).learn(200).save(tmp_path / "m.zip")
    model = MultiTaskDQN.load(tmp_path / "m.zip", env=columns(Toy)).learn(80, reset_num_timesteps=False)
    updates = model._n_updates
    model.learn(80)  # the steps count from 0 again
    assert model._n_updates > updates + 50


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_a_saved_model_takes_the_environment_that_it_was_made_with(dtype: Any, tmp_path: Path) -> None:
    env = columns(lambda: Toy(dtype))
    agent(env).save(tmp_path / "m.zip")
    assert MultiTaskDQN.load(tmp_path / "m.zip", env=env).learn(80)._n_updates > 0


def freeze(model: MultiTaskDQN) -> None:
    model.q_net.layers[0].requires_grad_(False)


def hook(model: MultiTaskDQN) -> None:
    model.q_net.layers[0].weight.register_hook(lambda gradient: 2 * gradient)


def give_new_values(model: MultiTaskDQN) -> None:
    model.q_net.layers[0].weight.data = torch.zeros(8, 3)


def replace_the_head(model: MultiTaskDQN) -> None:
    model.q_net.layers[-1] = torch.nn.Linear(8, 2)


def replace_the_optimizer(model: MultiTaskDQN) -> None:
    model.policy.optimizer = torch.optim.SGD(model.q_net.parameters(), 0.1)


@pytest.mark.parametrize("change", [freeze, hook, give_new_values, replace_the_head, replace_the_optimizer])
def test_changes_of_the_network_that_would_be_ignored_are_refused(change: Any) -> None:
    model = agent(columns(Toy)).learn(80)
    change(model)
    with pytest.raises(ValueError, match=r"^(q_net\.layers\.\d\.weight|policy\.optimizer) "):
        model.learn(80)


def test_settings_are_read_when_they_change_or_cannot_be_changed() -> None:
    model = agent(columns(Toy)).learn(80)
    for name in ("gamma", "max_grad_norm", "n_step", "buffer_size", "exploration_fraction"):
        with pytest.raises(AttributeError, match=rf"^{name} can't be changed any more; save the model and load it"):
            setattr(model, name, 0.5)
    model.tau = 1.0
    model.learn(80)
    for ours, target in zip(model.q_net.parameters(), model.q_net_target.parameters(), strict=True):
        assert torch.equal(ours, target)


def test_an_environment_that_is_refused_changes_nothing() -> None:
    model = agent(tasks("a", "b"))
    with pytest.raises(ValueError, match=r"the environment's tasks are a, c"):
        model.set_env(make_task_vec_env([Task("a", Toy), Task("c", Toy)], envs_per_task=5))
    with pytest.raises(ValueError, match=r"Action spaces do not match"):
        model.set_env(make_task_vec_env([Task(n, partial(Toy, actions=3)) for n in "ab"], envs_per_task=5))
    assert model.n_envs == 4
    model.learn(80)


def test_files_of_other_tasks_are_refused(tmp_path: Path) -> None:
    first, second = agent(tasks("a", "b")).learn(80), agent(tasks("b", "a"))
    first.save_replay_buffer(tmp_path / "replay.zip")
    first.save(tmp_path / "m.zip")
    with pytest.raises(ValueError, match=r"^the tasks of the replay are \('a', 'b'\), not b, a$"):
        second.load_replay_buffer(tmp_path / "replay.zip")
    with pytest.raises(ValueError, match=r"^the tasks of the model are "):
        second.set_parameters(tmp_path / "m.zip")


def aware(*names: str, world: tuple[str, ...] = ()) -> Any:
    one_hot_tasks = [Task(name, Toy) for name in world] or None
    return make_task_vec_env([Task(n, Toy) for n in names], variant="aware", one_hot_tasks=one_hot_tasks, seed=0)


def test_a_task_is_evaluated_with_the_one_hot_that_it_was_learned_with(tmp_path: Path) -> None:
    agent(aware("a", "b")).save(tmp_path / "m.zip")
    model = MultiTaskDQN.load(tmp_path / "m.zip")
    assert set(evaluate_tasks(model, aware("b", world=("a", "b")), 1)) == {"b"}
    with pytest.raises(ValueError, match=r"^the model has learned task b at place 1 of the one-hot"):
        evaluate_tasks(model, aware("b", "a"), 1)
    with pytest.raises(ValueError, match=r"^the model has learned task a at place 0 of the one-hot"):
        model.set_env(aware("a", "b", world=("b", "a")))


def test_a_one_hot_that_is_no_longer_at_the_end_is_refused() -> None:
    def limited(task: str) -> Any:
        return gymnasium.wrappers.TimeLimit(Toy(task=task), 10)

    env = columns(
        lambda: gymnasium.wrappers.TimeAwareObservation(TaskOneHot(limited("a"), 0, 2)),
        lambda: gymnasium.wrappers.TimeAwareObservation(TaskOneHot(limited("b"), 1, 2)),
    )
    with pytest.raises(ValueError, match=r"column 0 do not end with the one-hot .* let TaskOneHot be the last wrapper"):
        agent(env).learn(80)


def test_callbacks_of_sb3_work_with_the_evaluation_of_every_task(tmp_path: Path) -> None:
    stop = StopTrainingOnRewardThreshold(9.0)
    callback = TaskEvalCallback(Toy(task="a"), callback_on_new_best=stop, n_eval_episodes=1, eval_freq=20)
    model = agent(columns(partial(Toy, task="a"))).learn(80, callback=callback)
    assert model.num_timesteps == 20
    with pytest.raises(ValueError, match=r"has a task without a name"):
        TaskEvalCallback(columns(partial(Toy, task=object())))


def test_a_task_that_cannot_leave_its_process_is_asked_to_be_a_string() -> None:
    def with_lambda() -> Any:
        return Toy(task=Task("a", lambda render_mode: Toy()))

    env = SubprocVecEnv([with_lambda])
    with pytest.raises(ValueError, match=r"^the task of column 0 can't be sent from its process"):
        agent(env)


@pytest.mark.parametrize("net_arch", [64, {"pi": [8], "vf": [8]}, ["8"], [8.0]])
def test_a_wrong_net_arch_is_one_line(net_arch: Any) -> None:
    with pytest.raises(ValueError, match=r"^hidden_dims is .*at most 100 widths"):
        agent(columns(Toy), policy_kwargs={"net_arch": net_arch})


def test_a_loaded_model_keeps_its_balancer(tmp_path: Path) -> None:
    agent(tasks("a", "b"), balancer="gradnorm").save(tmp_path / "m.zip")
    with pytest.raises(ValueError, match=r"balancer can't be changed when a model is loaded; make a new agent"):
        MultiTaskDQN.load(tmp_path / "m.zip", balancer="pcgrad")
    assert MultiTaskDQN.load(tmp_path / "m.zip", balancer="gradnorm").balancer_name == "gradnorm"


def test_subnormal_numbers_are_what_they_were_after_learning() -> None:
    smallest = np.nextafter(0.0, 1.0) * np.ones(1)
    agent(columns(Toy)).learn(80)
    assert (smallest * np.ones(1) > 0).all()


def test_names_that_break_a_file_of_sb3_are_refused_or_warned_about(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the task of column 0 is called 'a\\nb'; a name must be printable$"):
        agent(columns(partial(Toy, task="a\nb")))
    model = agent(columns(partial(Toy, task="a, b")))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    with pytest.warns(UserWarning, match=r"progress\.csv does not quote"):
        model.learn(80)
    model.logger.close()
