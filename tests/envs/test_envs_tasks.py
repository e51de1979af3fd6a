"""Task definitions, their registry, and the Gymnasium ids made from them."""

import pickle
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from typing import Any

import gymnasium
import pytest

import envs
from envs import TASKS, LunarLanderTask, UnknownTaskError, get_task, get_tasks, register_task


@pytest.fixture
def clean_registry() -> Iterator[None]:
    """Forget the tasks that a test registers."""
    before = set(TASKS)
    yield
    for name in set(TASKS) - before:
        del gymnasium.registry[TASKS.pop(name).env_id]


def test_a_task_without_changes_is_gymnasiums_own() -> None:
    game: Any = gymnasium.make(envs.BASE_ID).unwrapped
    assert TASKS["Standard"] == LunarLanderTask(
        "Standard", game.gravity, 0.0, True, game.enable_wind, game.wind_power, game.turbulence_power, 1.0, 1000
    )
    assert TASKS["Standard"].time_limit == gymnasium.spec(envs.BASE_ID).max_episode_steps


def test_tasks_differ_only_in_their_data() -> None:
    standard = TASKS["Standard"]
    continuous = dict(zip(envs.CONTINUOUS_TASKS, envs.DEFAULT_TASKS, strict=True))
    assert list(TASKS.items()) == [
        ("Standard", standard),
        ("Windy", replace(standard, name="Windy", gust_power=20.0, time_limit=400)),
        ("Heavy", replace(standard, name="Heavy", gravity=-12.5, time_limit=800)),
        ("WindyUngated", replace(TASKS["Windy"], name="WindyUngated", gust_gated=False)),
        *((task, replace(TASKS[of], name=task, continuous=True)) for task, of in continuous.items()),
    ]
    assert envs.DEFAULT_TASKS == ("Standard", "Windy", "Heavy")


def test_tasks_are_immutable_hashable_and_survive_pickling() -> None:
    task = TASKS["Heavy"]
    assert pickle.loads(pickle.dumps(task)) == task
    assert len({*TASKS.values()}) == len(TASKS)
    with pytest.raises(FrozenInstanceError):
        task.gravity = -10.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gravity", 0.0),
        ("gravity", 10.0),
        ("gravity", float("nan")),
        ("gravity", float("-inf")),
        ("gust_power", -1.0),
        ("gust_power", float("inf")),
        ("wind_power", -1.0),
        ("turbulence_power", float("nan")),
        ("mass_scale", 0.0),
        ("mass_scale", float("inf")),
        ("time_limit", 0),
        ("time_limit", 10.5),
    ],
)
def test_a_bad_field_is_named_in_one_line(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field} of task 'Bad' is {value!r}; it must be [^\n]+$"):
        LunarLanderTask("Bad", **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a/b", "a b", "-a", "ä", "a_b"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="task name"):
        LunarLanderTask(name)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownTaskError) as caught:
        get_task("Windey")
    assert (
        str(caught.value)
        == "unknown task 'Windey'; tasks are Standard, Windy, Heavy, "
        + ", ".join(("WindyUngated", *envs.CONTINUOUS_TASKS))
        + "; groups of tasks are MT3, MT10, MT50"
        + "; a task may also be an id of Gymnasium (CartPole-v1) or an address (my_tasks:MOON)"
    )
    assert isinstance(caught.value, ValueError)


def test_get_task_takes_names_and_tasks() -> None:
    free = LunarLanderTask("Free", gravity=-3.7)
    assert get_task("Windy") is get_task(TASKS["Windy"]) is TASKS["Windy"]
    assert get_task(free) is free


def test_one_name_stands_for_one_task() -> None:
    with pytest.raises(ValueError, match="'Windy' differs from the registered task"):
        get_task(replace(TASKS["Windy"], gust_power=5.0))


def test_get_tasks_keeps_order_and_refuses_repeats_and_nothing() -> None:
    assert [task.name for task in get_tasks(["Heavy", TASKS["Standard"]])] == ["Heavy", "Standard"]
    assert get_tasks("Heavy") == get_tasks(TASKS["Heavy"]) == (TASKS["Heavy"],)
    with pytest.raises(ValueError, match="distinct, not Windy, Heavy, Windy"):
        get_tasks(["Windy", "Heavy", "Windy"])
    with pytest.raises(ValueError, match="no tasks given"):
        get_tasks([])


@pytest.mark.usefixtures("clean_registry")
def test_registering_a_task_makes_its_name_and_id() -> None:
    task = register_task(LunarLanderTask("Moon-1.6", gravity=-1.6, time_limit=7))
    assert register_task(task) is get_task("Moon-1.6") is task
    env = gymnasium.make("mtrl/LunarLander-Moon-1.6-v0")
    assert env.get_wrapper_attr("task") == task
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7
    with pytest.raises(ValueError, match="give it another name"):
        register_task(replace(task, gravity=-2.0))
    assert get_task("Moon-1.6") is task
