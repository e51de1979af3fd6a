"""The task vector environment: columns, random streams, and the ends of episodes."""

import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

import envs
from envs import TASKS, ColumnError, LunarLanderTask, TaskVecEnv, UnknownTaskError, make_task_vec_env
from mtrl import checkpoint


def rollout(vec_env: TaskVecEnv, steps: int = 200) -> np.ndarray:
    """Observations and rewards of every column under fixed actions: (steps, columns, dim + 1)."""
    observations: Any = vec_env.reset()
    rows = []
    for action in np.random.default_rng(0).integers(4, size=steps):
        observations, rewards, _, _ = vec_env.step(np.full(vec_env.num_envs, action))
        rows.append(np.column_stack((observations, rewards)))
    return np.array(rows)


def starts(vec_env: TaskVecEnv) -> list[bytes]:
    """Each column's first state (without one-hot), to compare for equality."""
    observations: Any = vec_env.reset()
    return [state.tobytes() for state in observations[:, :8]]


def test_columns_are_task_major_and_monitored() -> None:
    vec_env = make_task_vec_env(["Heavy", TASKS["Standard"]], envs_per_task=3)
    assert [task.name for task in vec_env.get_attr("task")] == ["Heavy"] * 3 + ["Standard"] * 3
    assert [task.name for task in VecNormalize(vec_env).get_attr("task")] == ["Heavy"] * 3 + ["Standard"] * 3
    assert all(vec_env.env_is_wrapped(Monitor))
    observations: Any = vec_env.reset()
    np.testing.assert_array_equal(observations[:, 8:], [[1, 0]] * 3 + [[0, 1]] * 3)


def test_the_defaults_are_four_aware_columns_of_each_benchmark_task() -> None:
    vec_env = make_task_vec_env()
    assert [task.name for task in vec_env.get_attr("task")] == [n for n in envs.DEFAULT_TASKS for _ in range(4)]
    assert vec_env.observation_space.shape == (11,)
    assert make_task_vec_env(variant="blind").observation_space.shape == (8,)


def test_one_hot_tasks_set_the_one_hot_of_an_evaluation_environment() -> None:
    observations: Any = make_task_vec_env("Windy", envs_per_task=2, one_hot_tasks=envs.DEFAULT_TASKS).reset()
    np.testing.assert_array_equal(observations[:, 8:], [[0, 1, 0]] * 2)


@pytest.mark.parametrize("variant", envs.variants)
def test_one_seed_one_rollout(variant: str) -> None:
    first = rollout(make_task_vec_env(seed=3, variant=variant))
    np.testing.assert_array_equal(rollout(make_task_vec_env(seed=3, variant=variant)), first)
    assert not np.array_equal(rollout(make_task_vec_env(seed=4, variant=variant)), first)


def test_no_two_columns_of_nearby_seeds_share_a_stream() -> None:
    seen = [start for seed in range(20) for start in starts(make_task_vec_env(seed=seed))]
    assert len(set(seen)) == len(seen) == 240


def test_without_a_seed_every_environment_differs() -> None:
    assert not set(starts(make_task_vec_env())) & set(starts(make_task_vec_env()))
    vec_env = make_task_vec_env(seed=0)
    first = starts(vec_env)
    vec_env.seed()
    assert not set(starts(vec_env)) & set(first)


def test_seeding_through_sb3_gives_the_same_streams() -> None:
    """An algorithm made with `seed=k` calls `env.seed(k)`, which must not undo the independence of the columns."""
    vec_env = make_task_vec_env(seed=99)
    model = DQN("MlpPolicy", vec_env, seed=7, buffer_size=100)
    assert model.get_env() is vec_env
    assert starts(vec_env) == starts(make_task_vec_env(seed=7))


def test_a_seed_holds_for_one_reset_and_its_stream_goes_on() -> None:
    vec_env = make_task_vec_env(seed=0)
    assert not set(starts(vec_env)) & set(starts(vec_env))


def test_only_time_limits_are_marked_as_truncations() -> None:
    ends: dict[str, set[bool]] = {}
    task = envs.LunarLanderTask("Brief", time_limit=80)  # a craft without engines hits the ground at steps 50 to 120
    vec_env = make_task_vec_env(task, envs_per_task=16, seed=0)
    observations: Any = vec_env.reset()
    for _ in range(250):
        observations, rewards, dones, infos = vec_env.step(np.zeros(16, np.int64))
        for column, info in enumerate(infos):
            assert ("terminal_observation" in info) == ("episode" in info) == dones[column]
            if not dones[column]:
                assert not info["TimeLimit.truncated"]
                continue
            truncated = info["TimeLimit.truncated"]
            ends.setdefault("truncated" if truncated else "terminated", set()).add(abs(rewards[column]) == 100)
            assert truncated <= (info["episode"]["l"] == task.time_limit)
            assert not np.array_equal(info["terminal_observation"], observations[column])
            assert observations[column][1] > 1.3  # the next episode has begun, at the top
    assert ends == {"truncated": {False}, "terminated": {True}}


def test_render_mode_reaches_every_column() -> None:
    vec_env = make_task_vec_env(envs_per_task=1, seed=0, render_mode="rgb_array")
    vec_env.reset()
    assert vec_env.render_mode == "rgb_array"
    assert [image.shape for image in vec_env.get_images() if image is not None] == [(400, 600, 3)] * 3
    vec_env.close()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tasks": ["Windey"]}, UnknownTaskError, "unknown task 'Windey'; tasks are Standard, Windy, Heavy, "),
        ({"tasks": []}, ValueError, "no tasks given"),
        ({"tasks": ["Heavy", TASKS["Heavy"]]}, ValueError, "tasks must be distinct, not Heavy, Heavy"),
        ({"envs_per_task": 0}, ValueError, "envs_per_task is 0; it must be at least 1"),
        ({"variant": "both"}, ValueError, "unknown variant 'both'; choose from aware, blind"),
        ({"tasks": "Windy", "one_hot_tasks": ["Heavy"]}, ValueError, "task 'Windy' is not one of the tasks Heavy"),
        ({"one_hot_tasks": []}, ValueError, "no tasks given"),
        ({"seed": -1}, ValueError, "non-negative"),
        ({"step_timeout": -1}, ValueError, "the time limit in seconds is -1; it must be at least 0 and finite"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        make_task_vec_env(**arguments)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ saved amid episodes

WINDS = LunarLanderTask("OwnWind", enable_wind=True, mass_scale=1.3, gust_power=5.0, time_limit=200)
SAVED = [["Standard", "Windy", "Heavy"], ["WindyUngated"], [WINDS]]


def play(vec_env: TaskVecEnv, rng: np.random.Generator, steps: int) -> list[Any]:
    """All that `steps` steps gave; the craft mostly falls, so that episodes end."""
    given = []
    for _ in range(steps):
        actions = np.where(rng.random(vec_env.num_envs) < 0.5, 0, rng.integers(4, size=vec_env.num_envs))
        observations, rewards, dones, infos = vec_env.step(actions)
        ends = [(info.get("episode", {}).get("r"), info.get("episode", {}).get("l")) for info in infos]
        last = [info["terminal_observation"].tobytes() for info in infos if "terminal_observation" in info]
        cut = [info["TimeLimit.truncated"] for info in infos]
        given.append((np.asarray(observations).tobytes(), rewards.tobytes(), dones.tobytes(), ends, last, cut))
    return given


@pytest.mark.parametrize("tasks", SAVED, ids=["benchmark", "ungated", "own wind"])
@pytest.mark.parametrize("flush", [False, True], ids=["subnormal", "flushed"])
def test_a_restored_environment_goes_on_bit_for_bit(tasks: list[Any], flush: bool, tmp_path: Path) -> None:
    torch.set_flush_denormal(flush)  # as training does; the physics is computed under it, too
    try:
        moments = np.random.default_rng(3)
        vec_env = make_task_vec_env(tasks, envs_per_task=2, seed=11)
        vec_env.reset()
        checkpoint.save(tmp_path / "start.zip", vec_env.state_dict())
        played = 0
        for _ in range(8):
            steps = int(moments.integers(0, 150))
            play(vec_env, moments, steps)
            played += steps
            checkpoint.save(tmp_path / "state.zip", vec_env.state_dict())
            draws = moments.bit_generator.state
            here = vec_env._obs_from_buf()
            expected = play(vec_env, moments, 120)

            for used in (False, True):  # what was in an environment before does not matter
                other = make_task_vec_env(tasks, envs_per_task=2, seed=5)
                other.reset()
                if used:
                    play(other, np.random.default_rng(0), 170)
                again = np.random.default_rng(0)
                again.bit_generator.state = draws
                observations = other.load_state_dict(checkpoint.load(tmp_path / "state.zip"))
                np.testing.assert_array_equal(np.asarray(observations), np.asarray(here))
                assert other.column_seeds == vec_env.column_seeds
                assert play(other, again, 120) == expected
        assert played > 300
        np.testing.assert_array_equal(
            np.asarray(vec_env.load_state_dict(checkpoint.load(tmp_path / "start.zip"))),
            np.asarray(make_task_vec_env(tasks, envs_per_task=2, seed=11).reset()),
        )
    finally:
        torch.set_flush_denormal(False)


def test_an_unseeded_environment_can_be_saved_too() -> None:
    vec_env = make_task_vec_env("Windy", envs_per_task=1)
    vec_env.reset()
    play(vec_env, np.random.default_rng(1), 130)
    other = make_task_vec_env("Windy", envs_per_task=1)
    other.load_state_dict(vec_env.state_dict())
    assert play(other, np.random.default_rng(2), 50) == play(vec_env, np.random.default_rng(2), 50)


def test_a_state_of_other_environments_is_refused() -> None:
    vec_env = make_task_vec_env("Windy", envs_per_task=2, seed=0)
    vec_env.reset()
    with pytest.raises(ValueError, match="the state is of 2 columns; there are 3"):
        make_task_vec_env(seed=0, envs_per_task=1).load_state_dict(vec_env.state_dict())
    play(vec_env, np.random.default_rng(1), 40)
    state = vec_env.state_dict()
    state["episodes"][1]["actions"] = np.array([0, 7])
    with pytest.raises(ValueError, match=r"environments of column 1: an action is none of Discrete\(4\)"):
        vec_env.load_state_dict(state)


# ------------------------------------------------------------------------------------------------ failures


class Faulty(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Does something wrong at one step or reset."""

    def __init__(self, env: Any, fault: str, at: int) -> None:
        super().__init__(env)
        self.fault, self.left = fault, at

    def step(self, action: Any) -> Any:
        self.left -= 1
        observation, *others = self.env.step(action)
        if self.left == 0:
            match self.fault:
                case "raises":
                    raise KeyError("nothing\nthere")
                case "hangs":
                    time.sleep(30)
                case "is stretched":
                    observation = observation[:1]
                case "is not an array":
                    observation = None
        return (observation, *others)

    def reset(self, **kwargs: Any) -> Any:
        if self.fault == "reset":
            raise RuntimeError("no episode")
        return self.env.reset(**kwargs)


def faulty(fault: str, at: int = 20) -> TaskVecEnv:
    vec_env = TaskVecEnv(
        [
            lambda: envs.make_task_env("Heavy"),
            lambda: Faulty(envs.make_task_env("Windy"), fault, at),
            lambda: envs.make_task_env("Standard"),
        ],
        step_timeout=0.2,
    )
    vec_env.seed(4)
    return vec_env


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", r"KeyError: 'nothing\\nthere'"),
        ("hangs", "WatchdogError: no answer within 0.2 s"),
        ("is stretched", r"ValueError: an observation of shape \(1,\), not \(8,\)"),
        ("is not an array", r"ValueError: an observation of shape \(\), not \(8,\)"),
    ],
)
def test_a_failing_column_is_named_and_the_step_has_not_been(fault: str, message: str) -> None:
    vec_env, sound = faulty(fault), faulty("none")
    for each in (vec_env, sound):
        each.reset()
        for _ in range(19):
            each.step(np.array([0, 1, 2]))
    seed = vec_env.column_seeds[1]
    with pytest.raises(ColumnError, match=rf"^environment 1 of task Windy \(seed {seed}\) failed: {message}$"):
        vec_env.step(np.array([3, 3, 3]))
    again = faulty("none")
    again.load_state_dict(vec_env.state_dict())
    for action in (3, 2, 1):
        np.testing.assert_array_equal(again.step(np.full(3, action))[0], sound.step(np.full(3, action))[0])


def test_a_column_that_cannot_begin_is_named() -> None:
    with pytest.raises(ColumnError, match=r"environment 1 of task Windy \(seed \d+\) failed: RuntimeError: no episode"):
        faulty("reset").reset()
