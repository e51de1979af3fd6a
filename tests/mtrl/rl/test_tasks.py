"""Tasks of any kind: their registry, and the vector environment that is made of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from mtrl.rl import (
    AnyTask,
    Task,
    TaskOneHot,
    UnknownTaskError,
    get_task,
    get_tasks,
    make_task_vec_env,
    register_group,
    register_task,
)
from mtrl.rl.tasks import GROUPS, TASKS

POLE = Task("Pole", partial(gymnasium.make, "CartPole-v1"), solved_at=475.0)


class Counting(gymnasium.Env[Any, Any]):
    """Observes the number of steps; ends after `length` of them."""

    def __init__(self, render_mode: str | None = None, length: int = 3, shape: tuple[int, ...] = (1,)) -> None:
        self.render_mode, self.length = render_mode, length
        self.observation_space = spaces.Box(0, 10, shape, np.float64)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(self.observation_space.shape or ()), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.full(self.observation_space.shape or (), self.steps), 1.0, self.steps == self.length, False, {}


@dataclass(frozen=True)
class Counted:
    """A task that is no `Task`."""

    name: str
    length: int
    solved_at: float | None = None

    def make(self, *, render_mode: str | None) -> Counting:
        return Counting(render_mode, self.length)


@pytest.fixture
def no_tasks() -> Iterator[None]:
    before = [(registry, dict(registry)) for registry in (TASKS, GROUPS)]
    for registry, _ in before:
        registry.clear()
    yield
    for registry, content in before:
        registry.clear()
        registry.update(content)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_tasks")
def test_a_registered_task_is_known_by_its_name() -> None:
    with pytest.raises(UnknownTaskError, match=r"^unknown task 'Pole'; no task is registered; a task may also be"):
        get_task("Pole")
    assert register_task(POLE) is POLE
    register_task(Task(POLE.name, POLE.make, 475.0))  # an equal task changes nothing
    assert get_task("Pole") is POLE
    assert get_tasks(["Pole", Counted("Two", 2)]) == (POLE, Counted("Two", 2))
    with pytest.raises(UnknownTaskError, match=r"^unknown task 'Pol'; tasks are Pole; a task may also be"):
        make_task_vec_env(["Pol"])


@pytest.mark.usefixtures("no_tasks")
def test_one_name_stands_for_one_task() -> None:
    register_task(Counted("Count", 2))
    with pytest.raises(ValueError, match=r"^task 'Count' differs from the registered task of that name"):
        register_task(Counted("Count", 3))
    assert get_task("Count") == Counted("Count", 2)


@pytest.mark.usefixtures("no_tasks")
def test_a_group_is_known_by_its_name_and_so_are_its_tasks() -> None:
    register_task(POLE)
    counted = Counted("One", 1), Counted("Two", 2)
    assert register_group("Counts", counted) == counted
    register_group("Counts", [*counted])  # an equal group changes nothing
    assert get_tasks(["Pole", "Counts"]) == (POLE, *counted)
    assert get_task("Two") is counted[1]
    assert make_task_vec_env("Counts", 2).num_envs == 4
    with pytest.raises(ValueError, match=r"^'Counts' stands for 2 tasks: One, Two$"):
        get_task("Counts")
    with pytest.raises(
        UnknownTaskError, match=r"^unknown task 'Tw'; tasks are Pole; groups of tasks are Counts; did you "
    ):
        get_task("Tw")
    with pytest.raises(ValueError, match=r"^no tasks given; tasks are Pole; groups of tasks are Counts$"):
        get_tasks([])


@pytest.mark.usefixtures("no_tasks")
@pytest.mark.parametrize(
    ("name", "tasks", "message"),
    [
        ("Pole", [Counted("One", 1)], "'Pole' is the name of another task"),
        ("CartPole-v1", [Counted("One", 1)], "'CartPole-v1' is the name of another task"),
        ("Counts", [Counted("Two", 2)], "'Counts' is the name of another group"),
        ("More", [], "no tasks given"),
        ("More", [Counted("One", 1), Counted("One", 1)], "tasks must be distinct"),
        ("More", [Counted("One", 3)], "task 'One' differs from the registered task of that name"),
    ],
)
def test_a_group_that_cannot_be_is_refused_in_one_line(name: str, tasks: list[Any], message: str) -> None:
    register_task(POLE)
    register_group("Counts", [Counted("One", 1)])
    before = dict(TASKS), dict(GROUPS)
    with pytest.raises(ValueError, match=rf"^{message}[^\n]*$"):
        register_group(name, tasks)
    with pytest.raises(ValueError, match=r"^'Counts' is the name of a group of tasks$"):
        register_task(Counted("Counts", 1))
    assert before == (TASKS, GROUPS)


def test_what_has_the_members_of_a_task_is_one() -> None:
    assert isinstance(POLE, AnyTask)
    assert isinstance(Counted("Two", 2), AnyTask)
    assert not isinstance("Pole", AnyTask)
    assert not isinstance(Counting(), AnyTask)


def test_tasks_of_several_kinds_are_columns_of_one_environment() -> None:
    tasks = [
        Counted("two", 2),
        Task("three", Counting),  # a class of environments
        Task("four", lambda render_mode: Counting(render_mode, 4)),
    ]
    env = make_task_vec_env(tasks, envs_per_task=1, render_mode="rgb_array")
    assert env.get_attr("task") == tasks
    assert env.get_attr("render_mode") == ["rgb_array"] * 3
    assert env.observation_space.dtype == np.float64
    observations: Any = env.reset()
    np.testing.assert_array_equal(observations, [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    lengths = {}
    for step in range(1, 5):
        _, _, dones, infos = env.step(np.zeros(3, np.int64))
        for task, done, info in zip(tasks, dones, infos, strict=True):
            if done and task.name not in lengths:
                lengths[task.name] = step
                assert info["episode"]["l"] == step
    assert lengths == {"two": 2, "three": 3, "four": 4}


def test_a_gymnasium_id_makes_a_task() -> None:
    env = make_task_vec_env(POLE, envs_per_task=2, seed=0, variant="blind")
    assert env.observation_space.shape == (4,)
    assert not any(env.env_is_wrapped(TaskOneHot))


def test_tasks_of_different_spaces_are_refused_in_one_line() -> None:
    wide = Task("wide", partial(Counting, shape=(2,)))
    with pytest.raises(ValueError, match="all columns must have the same observation_space") as caught:
        make_task_vec_env([Counted("two", 2), wide], envs_per_task=2, variant="blind")
    assert "column 2 of task wide has Box" in str(caught.value)
    assert "column 0 of task two has Box" in str(caught.value)


def test_a_one_hot_stands_beside_what_is_no_vector() -> None:
    image = Task("image", partial(Counting, shape=(2, 2)))
    assert make_task_vec_env(image, variant="blind").observation_space.shape == (2, 2)
    space: Any = make_task_vec_env(image).observation_space
    assert {key: part.shape for key, part in space.spaces.items()} == {"observation": (2, 2), "task": (1,)}
