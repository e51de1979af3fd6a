"""The task vector environment: columns, random streams, and the ends of episodes."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3 import DQN
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

import envs
from envs import TASKS, TaskVecEnv, UnknownTaskError, make_task_vec_env


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


def test_world_sets_the_one_hot_of_an_evaluation_environment() -> None:
    observations: Any = make_task_vec_env("Windy", envs_per_task=2, world=envs.DEFAULT_TASKS).reset()
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
        ({"envs_per_task": 0}, ValueError, "envs_per_task must be at least 1, not 0"),
        ({"variant": "both"}, ValueError, "unknown variant 'both'; variants are aware, blind"),
        ({"tasks": "Windy", "world": ["Heavy"]}, ValueError, "task 'Windy' is not one of the tasks Heavy"),
        ({"world": []}, ValueError, "no tasks given"),
        ({"seed": -1}, ValueError, "non-negative"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        make_task_vec_env(**arguments)
    assert "\n" not in str(caught.value)
