"""Continuous actions as environments take them: within bounds, of the type of the space, alike in training and play."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from stable_baselines3 import SAC

from mtrl.rl import MultiTaskSAC, Task, evaluate_tasks, make_task_vec_env
from mtrl.rl.actions import ActionScale


class Strict(gymnasium.Env[Any, Any]):
    """Takes nothing but what lies in its action space, type and all, and keeps what it was given."""

    def __init__(self, box: Box) -> None:
        self.observation_space, self.action_space = Box(-1, 1, (2,), np.float32), box
        self.taken: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        action = np.asarray(action)  # a single number has no shape
        assert self.action_space.contains(action), (action, action.dtype)
        self.taken.append(action)
        self.steps += 1
        return self.observation_space.sample(), 0.0, False, self.steps == 10, {}


def columns(box: Box) -> Any:
    return make_task_vec_env([Task("strict", lambda render_mode: Strict(box))], envs_per_task=2, seed=0)


def agent(box: Box) -> MultiTaskSAC:
    settings: Any = {"learning_starts": 100, "batch_size": 8, "buffer_size": 500, "policy_kwargs": {"net_arch": [8]}}
    return MultiTaskSAC("MlpPolicy", columns(box), seed=0, **settings)


BOXES = {
    "float32": Box(-0.3, 0.1, (2,), np.float32),
    "float64 whose bounds are no numbers of float32": Box(-0.1, 0.1, (2,), np.float64),
    "float16": Box(-1, 3, (2,), np.float16),
    "small integers": Box(-1, 1, (2,), np.int8),
    "two integers": Box(0, 1, (2,), np.int64),
    "all bytes": Box(0, 255, (2,), np.uint8),
    "as wide as its type": Box(-128, 127, (2,), np.int8),
    "one number": Box(-2, 5, (), np.float64),
    "bounds of each number": Box(np.array([[0, -5], [1, 2]]), np.array([[1, 5], [2, 20]]), dtype=np.float32),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_training_and_evaluation_take_what_lies_in_the_space(box: Box) -> None:
    model = agent(box)
    model.learn(140)
    evaluate_tasks(model, columns(box), 2)
    for deterministic in (True, False):
        several, _ = model.predict(model.env.reset(), deterministic=deterministic)  # type: ignore[union-attr, arg-type]
        one, _ = model.predict(np.zeros(model.observation_space.shape), deterministic=deterministic)  # type: ignore[arg-type]
        assert several.dtype == one.dtype == box.dtype
        assert all(box.contains(np.asarray(action)) for action in (*several, one))


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_both_bounds_are_reached_and_not_passed(box: Box) -> None:
    of = ActionScale(box)
    ends = np.ones((1, *box.shape), np.float32)
    np.testing.assert_allclose(of(-ends)[0], box.low, rtol=0 if of.is_whole else 1e-6)
    np.testing.assert_allclose(of(ends)[0], box.high, rtol=0 if of.is_whole else 1e-6)
    inner = of(np.random.default_rng(0).uniform(-1, 1, (500, *box.shape)).astype(np.float32))
    assert all(box.contains(np.asarray(action)) for action in (*of(ends), *of(-ends), *inner))


def test_integers_are_the_nearest_ones_and_so_all_of_them_are_played() -> None:
    box = Box(-1, 1, (2,), np.int8)
    assert ActionScale(box)(np.array([[-0.6, -0.4], [0.4, 0.6]], np.float32)).tolist() == [[-1, 0], [0, 1]]
    model = agent(box)
    model.learn(100)
    taken = np.concatenate([env.unwrapped.taken for env in model.env.unwrapped.envs])  # type: ignore[union-attr, attr-defined]
    shares = [float((taken == number).mean()) for number in (-1, 0, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.1)


@pytest.mark.parametrize("name", ["float32", "float64 whose bounds are no numbers of float32", "bounds of each number"])
def test_numbers_with_fractions_are_those_of_stable_baselines3(name: str) -> None:
    box = BOXES[name]
    actions = np.random.default_rng(0).uniform(-1, 1, (100, *box.shape)).astype(np.float32)
    expected = SAC("MlpPolicy", Strict(box)).policy.unscale_action(actions)
    np.testing.assert_array_equal(agent(box).policy.unscale_action(actions), expected)


@pytest.mark.parametrize(
    "box",
    [
        Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,), np.float32),
        Box(-1.5e308, 1.5e308, (2,), np.float64),
        Box(-(2**62), 2**62, (2,), np.int64),
    ],
)
def test_bounds_between_which_nothing_can_be_computed_are_refused(box: Box) -> None:
    with pytest.raises(ValueError, match=r"whose bounds lie too far apart: they may differ by .* at most") as caught:
        MultiTaskSAC("MlpPolicy", Strict(box))
    assert "\n" not in str(caught.value)
