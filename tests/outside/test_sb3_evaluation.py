"""Evaluation in a project that uses Stable-Baselines3: what its users do with callbacks, monitors and normalisation."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecNormalize,
    sync_envs_normalization,
)

from mtrl import GradNorm
from mtrl.rl import MultiTaskDQN, Task, TaskEvalCallback, TaskReturns, evaluate_tasks, make_task_vec_env
from tests.support import TINY

PAY = {"a": 1.0, "b": -2.0, "c": 5.0}  # the reward of each step, by task


class Toy(gymnasium.Env[Any, Any]):
    """Noise for `length` steps; the reward of every step is the same, and `says` may add to the infos."""

    observation_space = spaces.Box(-10, 10, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(
        self, reward: float = 1.0, length: int = 10, task: Any = None, says: Any = None, render_mode: str | None = None
    ) -> None:
        self.reward, self.length, self.says, self.render_mode = reward, length, says, render_mode
        self.steps = self.played = self.rendered = 0
        if task is not None:
            self.task = task

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.standard_normal(3).clip(-10, 10).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        over = self.steps == self.length
        self.played += over
        info = {} if self.says is None else self.says(self.steps, self.played, over)
        return self.np_random.standard_normal(3).clip(-10, 10).astype(np.float32), self.reward, False, over, info

    def render(self) -> Any:
        self.rendered += 1
        return np.zeros((2, 2, 3), np.uint8)


def task(name: str, solved_at: float | None = None, **kwargs: Any) -> Task:
    return Task(name, partial(Toy, **{"reward": PAY.get(name, 1.0), **kwargs}), solved_at)


def tasks(names: str = "abc", envs_per_task: int = 2, **kwargs: Any) -> Any:
    return make_task_vec_env([task(name) for name in names], envs_per_task=envs_per_task, seed=0, **kwargs)


def agent(env: Any = None, **kwargs: Any) -> MultiTaskDQN:
    return MultiTaskDQN("MlpPolicy", tasks() if env is None else env, **{**TINY, **kwargs})


# -------------------------------------------------------------------------------------------------- evaluate_tasks


@pytest.mark.parametrize("episodes", [1, 2, 5, 7])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_number_of_episodes_need_not_be_a_multiple_of_the_columns(episodes: int, columns: int) -> None:
    found = evaluate_tasks(agent(), tasks(envs_per_task=columns), n_eval_episodes=episodes)
    assert {name: of.returns for name, of in found.items()} == {
        name: (10 * pay,) * episodes for name, pay in PAY.items()
    }
    assert all(of.lengths == (10,) * episodes for of in found.values())


def test_means_and_deviations_are_those_of_numpy() -> None:
    env = gymnasium.wrappers.TransformReward(Toy(), lambda reward: reward * env.unwrapped.played)  # type: ignore[attr-defined]
    model = agent(DummyVecEnv([Toy]))
    (found,) = evaluate_tasks(model, env, n_eval_episodes=4).values()
    assert found.mean == np.mean(found.returns) > 0
    assert found.deviation == np.std(found.returns) > 0
    assert evaluate_policy(model, env, 2, warn=False)[1] >= 0  # SB3 takes the same environment
    assert TaskReturns((1.0, 3.0)).success is None


@pytest.mark.parametrize(
    ("says", "solved_at", "expected"),
    [
        (None, None, None),
        (None, 10.0, (True, True)),
        (None, 10.5, (False, False)),
        (lambda step, played, over: {"is_success": over and played == 2}, 10.0, (False, True)),
        (lambda step, played, over: {"success": float(step == 3 and played == 0)}, None, (True, False)),  # Meta-World's
        (lambda step, played, over: {"is_success": np.bool_(step == 3)}, None, (False, False)),  # only the end counts
    ],
)
def test_a_success_is_what_the_task_says(says: Any, solved_at: Any, expected: Any) -> None:
    env = make_task_vec_env([task("a", solved_at, says=says)], envs_per_task=1)
    found = evaluate_tasks(agent(env), env, 2)["a"]
    assert found.successes == expected
    assert found.success == (None if expected is None else np.mean(expected))


def test_the_threshold_of_gymnasium_is_a_success() -> None:
    model = MultiTaskDQN("MlpPolicy", gymnasium.make("CartPole-v1"), **TINY)
    found = evaluate_tasks(model, gymnasium.make("CartPole-v1"), 2)["task"]
    assert found.successes == tuple(value >= 475 for value in found.returns)


def test_tasks_are_chosen_by_name_in_any_order() -> None:
    model, env = agent(), tasks()
    assert [*evaluate_tasks(model, env, 1, tasks=["c", "a"])] == ["c", "a"]
    assert [*evaluate_tasks(model, env, 1, tasks="b")] == ["b"]
    with pytest.raises(ValueError, match=r"^unknown task 'd'; known are a, b, c$"):
        evaluate_tasks(model, env, 1, tasks=["d"])
    with pytest.raises(ValueError, match=r"^tasks are empty; the environment has a, b, c$"):
        evaluate_tasks(model, env, 1, tasks=[])


def test_columns_may_be_fewer_and_in_another_order_than_in_training() -> None:
    every = [task(name) for name in "abc"]
    fewer = make_task_vec_env([every[2], every[0]], envs_per_task=1, one_hot_tasks=every)
    assert {name: of.mean for name, of in evaluate_tasks(agent(), fewer, 3).items()} == {"c": 50, "a": 10}
    blind = agent(tasks(variant="blind"))
    assert [*evaluate_tasks(blind, tasks("ca", variant="blind"), 3)] == ["c", "a"]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (partial(tasks, "ca"), "one-hot of 3 tasks, and the environment has one of 2: give .* as one_hot_tasks"),
        (partial(tasks, "cab"), "learned task c at place 2 of the one-hot, and the environment has it at place 0"),
        (partial(tasks, variant="blind"), "one-hot of 3 tasks, and the environment has one of 0"),
    ],
)
def test_one_hots_that_the_model_did_not_learn_with_are_refused(env: Any, message: str) -> None:
    for use in (evaluate_tasks, lambda model, columns: model.learn(20, TaskEvalCallback(columns))):
        with pytest.raises(ValueError, match=message):
            use(agent(), env())
    with pytest.raises(ValueError, match=r"has one of 3: give make_task_vec_env variant='blind'$"):
        evaluate_tasks(agent(tasks(variant="blind")), tasks())


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("names", ["abc", "b"])
def test_actions_may_be_greedy_or_not(deterministic: bool, names: str) -> None:
    model = agent(tasks(variant="blind")).learn(100)
    for columns in (1, 2, 6):
        env = tasks(names, envs_per_task=columns, variant="blind")
        assert evaluate_tasks(model, env, 1, deterministic)["b"].mean == -20


def test_episodes_are_shown_where_that_is_asked_for() -> None:
    env = make_task_vec_env([task("a")], envs_per_task=1, render_mode="rgb_array")
    model = agent(env)
    evaluate_tasks(model, env, 2)
    assert env.envs[0].unwrapped.rendered == 0
    evaluate_tasks(model, env, 2, render=True)
    assert env.envs[0].unwrapped.rendered == 20


def test_an_environment_without_a_monitor_is_given_one() -> None:
    env = DummyVecEnv([partial(Toy, task=name) for name in ("a", "b")])
    assert {name: of.mean for name, of in evaluate_tasks(agent(tasks("ab", variant="blind")), env).items()} == {
        "a": 10,
        "b": 10,
    }


def test_columns_in_other_processes_are_played() -> None:
    env = SubprocVecEnv([partial(Toy, task=name) for name in ("a", "b")], start_method="fork")
    try:
        assert evaluate_tasks(agent(tasks("ab", variant="blind")), env, 1)["b"].returns == (10.0,)
    finally:
        env.close()


def test_no_transition_reaches_over_an_evaluation_in_the_environment_of_the_training() -> None:
    model = agent(n_step=3).learn(60)
    evaluate_tasks(model, model.get_env(), 1)
    before = len(model.replay_buffer)
    model.learn(6, reset_num_timesteps=False)  # one step of six columns
    assert len(model.replay_buffer) == before  # its transitions are not complete, as at the beginning
    assert len(model._n_step_returns._steps) == 1


def test_a_model_of_sb3_is_evaluated() -> None:
    env = tasks("ab")
    model = DQN("MlpPolicy", env, buffer_size=100, learning_starts=10, seed=0, device="cpu")
    assert {name: of.mean for name, of in evaluate_tasks(model, env, 1).items()} == {"a": 10, "b": -20}


# ----------------------------------------------------------------------------------------------- evaluate_policy


def test_evaluate_policy_warns_once_that_it_shares_episodes_out() -> None:
    model = agent()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate_policy(model, tasks(), n_eval_episodes=3)
        evaluate_policy(model, tasks(), n_eval_episodes=3)
    (warning,) = caught
    assert "mtrl.rl.evaluate_tasks plays every task" in str(warning.message)
    assert warning.filename == __file__


def test_evaluate_policy_on_one_task_and_a_loop_of_ones_own_are_not_warned_about() -> None:
    model = agent(tasks(variant="blind"))
    evaluate_policy(model, tasks("a", variant="blind"), n_eval_episodes=3)
    evaluate_policy(model, Toy(), n_eval_episodes=1, warn=False)
    observations = tasks(variant="blind").reset()
    model.predict(observations, episode_start=np.ones(6, bool))
    assert not model._knows_of_evaluate_policy
    with pytest.warns(UserWarning, match="evaluate_policy"):  # an evaluation of one task has not used it up
        evaluate_policy(model, tasks(variant="blind"), n_eval_episodes=3)


def test_a_callback_of_sb3_warns_once_for_all_its_evaluations() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent().learn(120, EvalCallback(tasks(), eval_freq=5, n_eval_episodes=1, verbose=0))
    assert ["TaskEvalCallback" in str(warning.message) for warning in caught] == [True]


# --------------------------------------------------------------------------------------------------- the callback


def paying(name: str, *pay: float) -> Task:
    """A task of one step, whose episodes pay these rewards one after the other."""

    class Paying(Toy):
        def step(self, action: Any) -> Any:
            observation, _, terminated, truncated, info = super().step(action)
            return observation, pay[min(self.played, len(pay)) - 1], terminated, truncated, info

    return Task(name, lambda render_mode: Paying(length=1))


@pytest.mark.parametrize(("best_by", "steps", "best"), [("mean", 20, 6.0), ("worst", 30, 3.0)])
def test_the_best_model_is_best_by_the_mean_or_by_the_worst_task(
    best_by: Any, steps: int, best: float, tmp_path: Path
) -> None:
    # The evaluations find (1, 2), (1, 11), (3, 4) and (2, 5).
    env = make_task_vec_env([paying("a", 1, 1, 3, 2), paying("b", 2, 11, 4, 5)], envs_per_task=1)
    callback = TaskEvalCallback(
        env, n_eval_episodes=1, eval_freq=5, best_model_save_path=tmp_path / "best", best_by=best_by
    )
    agent(tasks("ab", envs_per_task=1), learning_starts=1000).learn(40, callback)
    assert callback.best_mean_reward == best
    assert MultiTaskDQN.load(tmp_path / "best" / "best_model").num_timesteps == steps


def test_every_evaluation_is_logged_with_its_step(tmp_path: Path) -> None:
    model = agent()
    model.set_logger(configure(str(tmp_path), ["json", "csv"]))
    env = make_task_vec_env(
        [task("a", 5.0), task("b", says=lambda *_: {"is_success": False}), task("c")], envs_per_task=2
    )
    model.learn(120, TaskEvalCallback(env, eval_freq=5, n_eval_episodes=3), log_interval=10**6)
    model.logger.close()
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [line["time/total_timesteps"] for line in lines] == [30, 60, 90, 120]
    for line in lines:
        assert {name: value for name, value in line.items() if name.startswith("eval/")} == {
            **{"eval/a/return": 10, "eval/a/deviation": 0, "eval/a/success": 1},
            **{"eval/b/return": -20, "eval/b/deviation": 0, "eval/b/success": 0},
            **{"eval/c/return": 50, "eval/c/deviation": 0},
            **{"eval/mean_return": pytest.approx(40 / 3), "eval/worst_return": -20},
        }


def test_long_names_fit_into_the_table_of_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a task whose name is much longer than the table {number}" for number in range(2)]
    env = partial(make_task_vec_env, [task(name) for name in names], envs_per_task=1)
    agent(env(), verbose=1).learn(40, TaskEvalCallback(env(), eval_freq=5, n_eval_episodes=1, verbose=1))
    assert f"eval/{names[1]}/return"[5:] in capsys.readouterr().out


def test_a_file_keeps_all_evaluations(tmp_path: Path) -> None:
    env = make_task_vec_env([task("a", 5.0), task("b", 5.0)], envs_per_task=2)
    callback = TaskEvalCallback(env, eval_freq=5, n_eval_episodes=3, log_path=tmp_path / "log", tasks=["b", "a"])
    agent(tasks("ab")).learn(40, callback)
    with np.load(tmp_path / "log" / "evaluations.npz", allow_pickle=False) as found:
        assert found["timesteps"].tolist() == [20, 40]
        assert found["tasks"].tolist() == ["b", "a"]
        assert found["results"].tolist() == [[[-20.0] * 3, [10.0] * 3]] * 2
        assert found["ep_lengths"].tolist() == [[[10] * 3] * 2] * 2
        assert found["successes"].tolist() == [[[False] * 3, [True] * 3]] * 2


@pytest.mark.parametrize(("best_by", "stops"), [("mean", True), ("worst", False)])
def test_training_stops_at_a_threshold(best_by: Any, stops: bool) -> None:
    callback = TaskEvalCallback(
        tasks(), StopTrainingOnRewardThreshold(10.0), n_eval_episodes=1, eval_freq=5, best_by=best_by
    )
    assert agent().learn(240, callback).num_timesteps == (30 if stops else 240)


def test_training_stops_without_improvement_also_within_lists_and_events() -> None:
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2)
    callback = TaskEvalCallback(tasks(), callback_after_eval=stop, n_eval_episodes=1, eval_freq=5)
    assert agent().learn(600, [CallbackList([callback])]).num_timesteps == 30 * 4
    every = TaskEvalCallback(tasks(), n_eval_episodes=1, eval_freq=1)
    agent().learn(120, EveryNTimesteps(60, every))
    assert every.n_calls == 2


def test_what_cannot_be_saved_is_found_in_callbacks_of_callbacks(tmp_path: Path) -> None:
    callback = TaskEvalCallback(tasks("a"), callback_on_new_best=CheckpointCallback(1, str(tmp_path)))
    with pytest.raises(ValueError, match=r"^CheckpointCallback saves models"):
        agent(tasks("a"), balancer=GradNorm(1)).learn(20, callback)


def test_the_environment_of_the_training_is_no_environment_for_a_callback() -> None:
    model = agent()
    with pytest.raises(ValueError, match=r"^the model is learning in the environment to evaluate in; make another one"):
        model.learn(20, TaskEvalCallback(model.get_env()))
    assert model.num_timesteps == 0
    with pytest.raises(ValueError, match=r"^the model is learning in the environment to evaluate in; make another one"):
        model.learn(20, lambda values, _: bool(evaluate_tasks(model, model.get_env(), 1)))
    assert evaluate_tasks(model, model.get_env(), 1)["b"].mean == -20


def test_words_of_the_callback_are_checked() -> None:
    with pytest.raises(ValueError, match=r"^unknown best_by 'median'; choose from mean, worst$"):
        TaskEvalCallback(tasks(), best_by="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^unknown task 'd'; known are a, b, c$"):
        TaskEvalCallback(tasks(), tasks=["d"])


# -------------------------------------------------------------------------------------------------- normalisation


def test_scaled_rewards_are_reported_as_they_came(tmp_path: Path) -> None:
    model = agent(reward_scaling="return")
    model.set_logger(configure(str(tmp_path), ["json"]))
    callback = TaskEvalCallback(tasks(), eval_freq=5, n_eval_episodes=1)
    model.learn(240, callback, log_interval=1)
    model.logger.close()
    assert {name: of.mean for name, of in callback.results.items()} == {name: 10 * pay for name, pay in PAY.items()}
    assert model.recent_returns == [10, -20, 50]
    last = json.loads((tmp_path / "progress.json").read_text().splitlines()[-1])
    assert [last[f"train/{name}/return"] for name in PAY] == [10, -20, 50]
    rewards = model.replay_buffer.state_dict()["rows"][..., -2]
    assert rewards.max(1).tolist() == pytest.approx([1 + 0.99 + 0.99**2, -2, 5 * (1 + 0.99 + 0.99**2)])


def normalised(**kwargs: Any) -> VecNormalize:
    return VecNormalize(tasks(variant="blind"), **kwargs)


@pytest.mark.parametrize("which", [{}, {"norm_reward": False}, {"norm_obs": False}])
def test_normalised_columns_are_refused_with_what_to_use(which: Any) -> None:
    with pytest.raises(ValueError, match=r"^VecNormalize is not supported.*reward_scaling='return'.*Transform[^\n]*$"):
        agent(normalised(**which))


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")  # of SB3's
@pytest.mark.parametrize("kind", [EvalCallback, TaskEvalCallback])
def test_a_callback_with_normalised_columns_is_refused_before_training(kind: Any) -> None:
    model = agent(tasks(variant="blind"))
    with pytest.raises(ValueError, match=r"is wrapped in VecNormalize, and [^\n]*$"):
        model.learn(20, kind(normalised(training=False)))
    assert model.num_timesteps == 0
    with pytest.raises(ValueError, match=r"^the environment to evaluate in is wrapped in VecNormalize"):
        evaluate_tasks(model, normalised(training=False), 1)


def test_a_model_of_sb3_that_learned_with_normalised_columns_is_evaluated_with_raw_returns() -> None:
    env, other = normalised(), normalised(training=False)
    model = DQN("MlpPolicy", env, buffer_size=100, learning_starts=10, seed=0, device="cpu").learn(60)
    sync_envs_normalization(env, other)
    assert evaluate_tasks(model, other, 1)["c"].returns == (50.0,)
    sync_envs_normalization(model.get_env(), other)


def test_sb3s_synchronisation_leaves_columns_of_tasks_alone() -> None:
    model = agent()
    sync_envs_normalization(model.get_env(), tasks())
