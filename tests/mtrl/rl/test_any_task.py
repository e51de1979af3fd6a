"""What may stand for a task: names, ids of Gymnasium, addresses, functions, lists of these; and what is refused."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from agents import BRC
from mtrl.rl import (
    ColumnError,
    MultiTaskDQN,
    Task,
    UnknownTaskError,
    evaluate_tasks,
    get_task,
    get_tasks,
    make_env,
    make_task_vec_env,
    solved_at,
    succeeded,
)

MODULE = """
import gymnasium
from functools import partial
from mtrl.rl import Task

gymnasium.register("Own/Pole-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=50)


def make_pole():
    return gymnasium.make("CartPole-v1")


class Group:
    INNER = "Acrobot-v1"


MOON = Task("Moon", partial(gymnasium.make, "CartPole-v1", max_episode_steps=30), solved_at=25)
nameless = lambda: gymnasium.make("CartPole-v1")
ALL = [MOON, ["CartPole-v1", make_pole]]
ITSELF = ["own_tasks:ITSELF"]
NUMBER = 3
"""


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module in the current folder, which is not on Python's path."""
    (tmp_path / "own_tasks.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    yield tmp_path
    for module in ("own_tasks", "broken", "leaves"):
        __import__("sys").modules.pop(module, None)
    gymnasium.registry.pop("Own/Pole-v0", None)


@pytest.mark.usefixtures("own_tasks")
@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("CartPole-v1", ["CartPole-v1"]),
        ("own_tasks:MOON", ["Moon"]),
        ("own_tasks:ALL", ["Moon", "CartPole-v1", "make_pole"]),
        ("own_tasks:make_pole", ["make_pole"]),
        ("own_tasks:nameless", ["nameless"]),
        ("own_tasks:Group.INNER", ["Acrobot-v1"]),
        ("own_tasks:Own/Pole-v0", ["Own/Pole-v0"]),
        (["own_tasks:MOON", ["CartPole-v1"]], ["Moon", "CartPole-v1"]),
        (gymnasium.spec("CartPole-v1"), ["CartPole-v1"]),
        (lambda: gymnasium.make("Acrobot-v1"), ["Acrobot-v1"]),
        (partial(gymnasium.make, "Acrobot-v1"), ["Acrobot-v1"]),
    ],
)
def test_what_stands_for_tasks(given: Any, names: list[str]) -> None:
    tasks = get_tasks(given)
    assert [task.name for task in tasks] == names
    assert tasks == get_tasks(given)  # what is the same compares equal
    for task in tasks:
        make_env(task).close()


@pytest.mark.usefixtures("own_tasks")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("CartPol-v1", "unknown task 'CartPol-v1'; .*did you mean CartPole-v1"),
        ("cartpole-V1", "did you mean CartPole-v1"),
        ("own_tasks:MOOON", "module 'own_tasks' has no 'MOOON', .*; did you mean MOON"),
        ("own_tasks:", "'own_tasks:' is no address; an address is module:name"),
        (".own_tasks:MOON", "is no address"),
        ("own_tasks.py:MOON", "cannot import .*; did you mean own_tasks:MOON"),
        ("none_such:MOON", "cannot import the module of task 'none_such:MOON': ModuleNotFoundError: No module named"),
        ("broken:MOON", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("leaves:MOON", "cannot import the module of task 'leaves:MOON': SystemExit: 3"),
        ("own_tasks:NUMBER", "at 'own_tasks:NUMBER': 3 is no task"),
        ("own_tasks:ITSELF", "leads to itself"),
        (["CartPole-v1", "CartPole-v1"], "tasks must be distinct, not CartPole-v1, CartPole-v1; give each a name"),
        (lambda: Switch(spaces.Discrete(2), 0), "has no name, and its environment has none; give Task"),
        (gymnasium.make("CartPole-v1"), "is an environment; give a function that makes one"),
        (None, "None is no task"),
        ({"a": "CartPole-v1"}, "is no task"),
        ([], "no tasks given"),
        ("own_tasks", "did you mean something in this module, as in own_tasks:NAME"),
    ],
)
def test_what_stands_for_no_task_is_said_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        get_tasks(given)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own_tasks")
def test_names_from_files_import_nothing() -> None:
    with pytest.raises(UnknownTaskError, match="unknown task 'leaves:MOON'"):
        get_tasks("leaves:MOON", imports=False)
    assert get_task("CartPole-v1", imports=False).solved_at == 475


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101, 3])
def test_a_task_needs_a_printable_name(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^task name .* must be a text of 1 to 100 printable characters$"):
        Task(name, partial(gymnasium.make, "CartPole-v1"))


class Switch(gymnasium.Env[Any, Any]):
    """Gives one observation, whether or not it fits the space."""

    def __init__(self, space: Any, observation: Any, as_tuple: bool | None = True) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.first = None if as_tuple is None else (observation, {}) if as_tuple else observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.first is None:
            raise KeyError("no level")
        return self.first


BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Switch(BOX, np.zeros(3)), r"an observation of task 'odd' has the shape \(3,\); its space is Box"),
        (
            lambda: Switch(BOX, np.array([0.0, 2.0])),
            r"the observation \[0. 2.\] of task 'odd' is not in its space, Box",
        ),
        (lambda: Switch(BOX, np.zeros(2), as_tuple=False), r"reset\(\) of task 'odd' gives a ndarray, not"),
        (lambda: 1 / 0, "the environment of task 'odd' can't be made: ZeroDivisionError: division by zero"),
        (lambda: "no environment", "the environment of task 'odd' is a builtins.str, not a gymnasium.Env"),
        (lambda: gymnasium.make_vec("CartPole-v1", 2), "is a gymnasium.*VectorEnv, .*make_task_vec_env copies it"),
        (gymnasium.Env, r"reset\(\) of task 'odd' gives a NoneType, not"),
        (lambda: Switch(None, 0, as_tuple=None), "the environment of task 'odd' can't be reset: KeyError: 'no level'"),
    ],
)
def test_an_environment_that_does_not_work_is_said_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_task_vec_env(Task("odd", make), variant="blind")
    assert "\n" not in str(caught.value)


def test_one_environment_cannot_be_two_columns() -> None:
    env = make_pole()
    with pytest.raises(ValueError, match="the function of task 'one' gives an environment that it gave before"):
        make_task_vec_env(Task("one", lambda: env))


def test_dtypes_and_rounding_are_no_fault() -> None:
    make_task_vec_env(Task("wide", lambda: Switch(BOX, np.array([1.000001, 0], np.float64))), variant="blind")


def test_columns_may_be_more_for_one_task() -> None:
    env = make_task_vec_env([Task("a", make_pole), Task("b", make_pole)], [1, 3])
    assert [task.name for task in env.get_attr("task")] == ["a", "b", "b", "b"]
    with pytest.raises(ValueError, match="envs_per_task has 1 numbers; give one number, or one for each of 2 tasks"):
        make_task_vec_env([Task("a", make_pole), Task("b", make_pole)], [1])
    with pytest.raises(ValueError, match="envs_per_task of b is 0; it must be at least 1"):
        make_task_vec_env([Task("a", make_pole), Task("b", make_pole)], [1, 0])


def make_pole() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1")


class Numbered(gymnasium.Env[Any, Any]):
    """Observes its own number and the step of the episode, which has three."""

    made = 0

    def __init__(self) -> None:
        self.number, Numbered.made = Numbered.made, Numbered.made + 1
        self.observation_space, self.action_space = spaces.Box(0, 100, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.array([self.number, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation = np.array([self.number, self.steps], np.float32)
        return observation, float(self.number), self.steps == 3, False, {}


@pytest.mark.parametrize("kind", [MultiTaskDQN, BRC])
@pytest.mark.parametrize("n_step", [1, 2])
def test_an_agent_learns_from_columns_that_are_more_for_one_task(kind: Any, n_step: int) -> None:
    Numbered.made = 0
    env = make_task_vec_env([Task("few", Numbered), Task("many", Numbered)], [2, 3], seed=0, variant="blind")
    few, many = (0, 1), (2, 3, 4)
    small = {"learning_starts": 60, "buffer_size": 400, "batch_size": 8, "device": "cpu", "seed": 0}
    agent = kind("MlpPolicy", env, n_step=n_step, **small)
    assert len(agent.exploration_rates) == 5
    agent.learn(300)
    rows = agent.replay_buffer.state_dict()["rows"]
    assert rows.shape[1] == 3 * (60 - n_step + 1)  # all tasks store as many as the one with most columns
    for task, numbers in enumerate((few, many)):
        stored = rows[task, :, 0]  # the column in which a transition began, and the one in which it ended
        assert (stored == rows[task, :, 2]).all()
        counts = [int((stored == number).sum()) for number in numbers]
        assert sum(counts) == len(stored)
        assert max(counts) - min(counts) <= 1  # the columns take turns
    assert agent.recent_returns == [pytest.approx(3 * np.mean(few), abs=0.2), pytest.approx(3 * np.mean(many), abs=0.2)]
    returns = evaluate_tasks(agent, env, n_eval_episodes=6)
    assert sorted(returns["few"].returns) == [0] * 3 + [3] * 3
    assert sorted(returns["many"].returns) == [6] * 2 + [9] * 2 + [12] * 2
    if kind is BRC:
        assert agent.update.return_scale.largest[1] > 2 * agent.update.return_scale.largest[0]


def test_what_counts_as_solved() -> None:
    env = make_pole()
    assert solved_at(Task("own", make_pole, 100), env) == 100
    assert solved_at(Task("of the specification", make_pole), env) == 475
    assert solved_at(Task("unknown", make_pole), Switch(BOX, 0)) is None
    assert succeeded([{"success": True}, {"success": False}], 0.0, None) is True
    assert succeeded([{"is_success": True}, {"is_success": np.float64(0)}], 0.0, None) is False
    assert succeeded([{}], 1e9, None) is None
    assert succeeded([{"success": True}, {}], 99.0, 100.0) is True  # the environment itself knows best
    assert succeeded([{}], 99.0, 100.0) is False


def test_a_task_is_shown_only_if_its_function_takes_a_render_mode() -> None:
    frame = make_env(get_task("CartPole-v1"), "rgb_array")
    frame.close()
    with pytest.raises(ValueError, match="can't be shown: it was made with render_mode=None and not 'rgb_array'"):
        make_env(Task("pole", make_pole), "rgb_array")


class Plain(gymnasium.Env[np.ndarray, int]):
    """Ends after `length` steps. Each test changes one thing of it."""

    observation_space: spaces.Space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space: spaces.Space = spaces.Discrete(2)
    length = 8
    reward: object = 1.0
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(3, np.float32), self.reward, self.steps >= self.length, False, {}


def variant_of_plain(**members):
    return type("Changed", (Plain,), members)


def small_agent(env):
    return MultiTaskDQN(
        "MlpPolicy", env, learning_starts=8, batch_size=4, buffer_size=64, policy_kwargs={"net_arch": [4]}, seed=0
    )


@pytest.mark.parametrize("actions", [spaces.MultiDiscrete([2, 2]), spaces.Box(-1, 1, (2,))])
def test_other_actions_beside_discrete_ones_are_no_matter_of_padding(actions) -> None:
    with pytest.raises(ValueError, match=r"Discrete\(n\) only.*TransformAction") as caught:
        make_task_vec_env([Plain, variant_of_plain(action_space=actions)])
    assert "pad" not in str(caught.value)


def test_bounds_and_dtypes_that_differ_are_answered_with_what_takes_them() -> None:
    wide = variant_of_plain(observation_space=spaces.Box(-2.0, 2.0, (3,), np.float64))
    with pytest.raises(ValueError, match=r"pad=True\), in commands --pad, takes .* bounds or dtype"):
        make_task_vec_env([Plain, wide])
    small_agent(make_task_vec_env([Plain, wide], envs_per_task=1, seed=0, pad=True)).learn(24)


def test_images_that_differ_are_not_answered_with_padding() -> None:
    images = [
        variant_of_plain(
            observation_space=spaces.Box(0, 255, (size, size, 3), np.uint8),
            reset=lambda self, size=size, **_: (np.zeros((size, size, 3), np.uint8), {}),
        )
        for size in (36, 40)
    ]
    with pytest.raises(ValueError, match="ResizeObservation") as caught:
        make_task_vec_env([Task(f"of {index}", make) for index, make in enumerate(images)])
    assert "pad=" not in str(caught.value)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"reward": np.array([1.0, 2.0])}, r"the reward is array\(\[1., 2.\]\); it must be a single number"),
        ({"reward": None}, "the reward is None; it must be a single number"),
        ({"step": lambda self, action: (np.zeros(3), 0.0, False, {})}, r"step\(\) gives 4 values, not \(observation"),
        ({"step": lambda self, action: (np.zeros(1), 0.0, False, False, {})}, r"of shape \(1,\), not \(3,\)"),
    ],
)
def test_what_a_step_gives_wrongly_is_named(members, message) -> None:
    env = make_task_vec_env(variant_of_plain(**members), envs_per_task=1, seed=0)
    env.reset()
    with pytest.raises(ColumnError, match=message):
        env.step([0])


def test_an_environment_without_a_space_is_named() -> None:
    with pytest.raises(ValueError, match="task 'Changed' has no observation_space"):
        make_task_vec_env(variant_of_plain(observation_space=None))


def test_an_id_of_a_package_that_is_not_imported_is_answered_with_how_to_import_it() -> None:
    with pytest.raises(UnknownTaskError, match="as in my_package:SomePackage/Pong-v9"):
        get_tasks("SomePackage/Pong-v9")


def test_a_success_that_is_unknown_says_nothing_and_several_are_refused() -> None:
    assert succeeded([{"success": np.nan}, {"success": None}], 0.0, None) is None
    assert succeeded([{"success": np.array([1.0])}], 0.0, None) is True
    with pytest.raises(ValueError, match=r"info\['success'\] is array\(\[1., 0.\]\); it must be a single truth value"):
        succeeded([{"success": np.array([1.0, 0.0])}], 0.0, None)


def test_an_episode_without_end_is_warned_about(monkeypatch) -> None:
    monkeypatch.setattr("mtrl.rl.episodes.LONG_EPISODE", 5)
    env = make_task_vec_env(Plain, envs_per_task=1, seed=0)
    with pytest.warns(UserWarning, match=r"task 'Plain' goes on after 5 steps.*TimeLimit"):
        evaluate_tasks(small_agent(env), make_task_vec_env(Plain, envs_per_task=1), 1)


def test_numbers_of_numpy_are_seeds_and_counts() -> None:
    tasks = ["CartPole-v1", Task("b", lambda: gymnasium.make("CartPole-v1"))]
    env = make_task_vec_env(tasks, envs_per_task=np.array([1, 2]), seed=0)
    assert env.num_envs == 3
    agent = MultiTaskDQN("MlpPolicy", env, buffer_size=256, seed=np.int64(3))  # type: ignore[arg-type]
    assert repr(agent.seed) == "3"
    with pytest.raises(ValueError, match="seed is -1"):
        MultiTaskDQN("MlpPolicy", env, buffer_size=256, seed=-1)


def test_tasks_to_play_may_be_given_themselves() -> None:
    pole = Task("b", lambda: gymnasium.make("CartPole-v1"))
    env = make_task_vec_env(["CartPole-v1", pole], envs_per_task=1, seed=0)
    assert list(evaluate_tasks(small_agent(env), env, 1, tasks=pole)) == ["b"]
