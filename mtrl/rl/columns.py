"""What an agent asks of the columns of its environment, and what it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecMonitor,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)

from mtrl.files import one_line
from mtrl.rl.actions import number_of_actions
from mtrl.rl.observations import TASK, ObservationRows, Observations
from mtrl.rl.vec_env import name_of
from mtrl.rl.wrappers import PaddedTask, TaskOneHot, remedy_for


class OneHots(NamedTuple):
    """What the end of the observations says about the task."""

    size: int
    """The number of tasks that are told apart; 0 if observations do not hold the task."""

    places: tuple[int, ...]
    """The place of each task of the environment in the one-hot, in the order of the tasks."""


def check_kind(env: Any) -> None:
    """Refuse kinds of environments that Stable-Baselines3 would take for something else.

    Raises:
        ValueError: `env` is one of Gymnasium's vector environments, or has observations that no agent takes.
    """
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise ValueError(
            "a vector environment of Gymnasium (gymnasium.make_vec) is not supported; use mtrl.rl.make_task_vec_env, "
            "or stable_baselines3.common.vec_env.DummyVecEnv"
        )
    if env is None or isinstance(env, str):
        return
    ObservationRows(env.observation_space)


def with_monitor(env: VecEnv) -> VecEnv:
    """The environment, in a `VecMonitor` if no other monitor reports the return of every episode."""
    seen = all(env.env_is_wrapped(Monitor))
    if seen and isinstance(env.unwrapped, DummyVecEnv):
        seen = all(map(_sees_every_end, env.unwrapped.envs))
    if seen or is_vecenv_wrapped(env, VecMonitor):
        return env
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*already wrapped with a `Monitor`")  # which does not see every end
        return VecMonitor(env)


def _sees_every_end(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether the monitor of a column sees its time limit, which is so unless the limit is outside the monitor."""
    while isinstance(env, gymnasium.Wrapper) and not isinstance(env, Monitor):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return False
        env = env.env
    return True


def check_columns(env: VecEnv) -> None:
    """Check that one network fits all columns.

    Raises:
        ValueError: the columns' spaces differ, or observations and rewards are normalised.
    """
    if unwrap_vec_normalize(env) is not None:
        raise ValueError(
            "VecNormalize is not supported: it would normalise the one-hot of the task, and all tasks' rewards by one "
            "number; scale rewards by reward_scaling='return', and observations by fixed numbers in a wrapper of each "
            "environment, such as gymnasium.wrappers.TransformObservation"
        )
    for kind in ("action_space", "observation_space"):
        found = env.get_attr(kind)
        for column, space in enumerate(found):
            if space != found[0]:
                raise ValueError(
                    f"all columns must have the same {kind}, but column {column} has {one_line(space)} and "
                    f"column 0 has {one_line(found[0])}; {remedy_for(kind, space, found[0])}"
                )


def action_counts(env: VecEnv, names: tuple[str, ...]) -> tuple[int, ...]:
    """How many actions each task has (see `number_of_actions`): fewer than the columns' where tasks are padded.

    Raises:
        ValueError: the columns of one task have different numbers.
    """
    if not any(padded := env.env_is_wrapped(PaddedTask)):
        return (number_of_actions(env.action_space),) * len(names)
    if not all(padded):
        raise ValueError("either all columns or none must be wrapped in PaddedTask")
    of_columns = env.get_attr("own_actions")
    counts = dict(zip(names_of_columns(env), of_columns, strict=True))
    if of_columns != [counts[name] for name in names_of_columns(env)]:
        raise ValueError(f"the columns of one task must have the same number of actions, not {of_columns}")
    return tuple(counts[name] for name in names)


def task_names(env: VecEnv) -> tuple[str, ...]:
    """The tasks of the columns. If no column has an attribute `task`, there is one task, called `task`.

    Raises:
        ValueError: some columns have no task, a task has no name, or the columns do not come task after task.
    """
    return tuple(dict.fromkeys(names_of_columns(env)))


def column_counts(env: VecEnv) -> tuple[int, ...]:
    """The number of columns of each task, in the order of the tasks; for the errors see `task_names`."""
    names = names_of_columns(env)
    return tuple(names.count(name) for name in dict.fromkeys(names))


def task_of(env: VecEnv, column: int) -> Any:
    """The attribute `task` of a column; None if it has none.

    A process of a `SubprocVecEnv` would end if it were asked for an attribute that it lacks.
    """
    in_processes = isinstance(env.unwrapped, SubprocVecEnv)
    if in_processes and not any(env.env_method("has_wrapper_attr", "task", indices=column)):
        return None
    try:
        return env.get_attr("task", column)[0]
    except AttributeError:
        return None


def names_of_columns(env: VecEnv) -> list[str]:
    """The name of the task of each column; for the errors see `task_names`."""
    found = []
    for column in range(env.num_envs):
        try:
            found.append(task_of(env, column))
        except (EOFError, ConnectionError):  # a process of a SubprocVecEnv has ended with an error
            raise ValueError(
                f"the task of column {column} can't be sent from its process: let its attribute `task` be a string"
            ) from None
    if all(task is None for task in found):
        return ["task"] * len(found)
    columns = []
    for column, task in enumerate(found):
        name = name_of(task)
        if name is None:
            what = "has no attribute `task`" if task is None else f"has a task without a name, {type(task).__name__}"
            raise ValueError(f"column {column} {what}; give each environment a `task` that is a string or has a `name`")
        if not name.isprintable():
            raise ValueError(f"the task of column {column} is called {name!r}; a name must be printable")
        columns.append(name)
    if sorted(columns, key=list(dict.fromkeys(columns)).index) != columns:
        raise ValueError(f"columns must come task after task, not {', '.join(columns)}")
    return columns


class Evening:
    """Repeats transitions of tasks that have fewer columns than others, so that all tasks store equally many of them.

    A replay is sampled uniformly, so that repeated transitions change nothing in what is learned. They make the replays
    of all tasks reach equally far back in time. The columns of a task take turns in being repeated.

    Args:
        counts: the number of columns of each task.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self._most = max(counts)
        self._counts = np.array(counts)[:, None]  # (T, 1)
        self._firsts = np.cumsum([0, *counts[:-1]])[:, None]
        self.is_needed = len(set(counts)) > 1

    def columns(self, step: int) -> NDArray[np.int64]:
        """The columns whose transitions are stored at a step, (T * K,) for K columns of the task that has most."""
        turn: NDArray[np.int64] = self._firsts + (step * self._most + np.arange(self._most)) % self._counts
        return turn.ravel()


def one_hots(env: VecEnv, names: tuple[str, ...]) -> OneHots:
    """The one-hots of the tasks at the end of the observations; of size 0 if there are none.

    Raises:
        ValueError: some columns have a one-hot and others have none, their sizes differ, or the columns of two tasks
            have the same one-hot, or those of one task different ones.
    """
    wrapped = env.env_is_wrapped(TaskOneHot)
    if not any(wrapped):
        return OneHots(0, ())
    if not all(wrapped):
        raise ValueError("either all columns or none must be wrapped in TaskOneHot")
    of_columns, tasks = env.get_attr("one_hot"), names_of_columns(env)
    if len(sizes := {len(one_hot) for one_hot in of_columns}) > 1:
        raise ValueError(f"all columns must have a one-hot of the same size, not of {sorted(sizes)}")
    owner: dict[int, str] = {}
    for column, one_hot in enumerate(of_columns):
        place, name = int(np.argmax(one_hot)), tasks[column]
        if owner.setdefault(place, name) != name:
            raise ValueError(f"the tasks {owner[place]} and {name} have the same place in the one-hot, {place}")
    if len(owner) != len(names):
        raise ValueError("the columns of one task must have the same place in the one-hot")
    return OneHots(sizes.pop(), tuple(owner))


def check_places(model: Any, env: VecEnv, names: tuple[str, ...]) -> None:
    """Check that the model has learned the tasks with the one-hots that the environment has for them.

    Raises:
        ValueError: it has learned a task of this name with another one-hot.
    """
    learned = dict(zip(getattr(model, "task_names", ()), getattr(model, "one_hot_places", ()), strict=False))
    for name, place in zip(names, one_hots(env, names).places, strict=False):
        if learned.get(name, place) != place:
            raise ValueError(
                f"the model has learned task {name} at place {learned[name]} of the one-hot, and the environment has "
                f"it at place {place}; give make_task_vec_env the same one_hot_tasks"
            )


def check_one_hots(env: VecEnv, observations: Observations) -> None:
    """Check that observations hold the one-hots of their columns, if these are wrapped in `TaskOneHot`.

    Raises:
        ValueError: they end with something else, because another wrapper has changed them since.
    """
    if not any(env.env_is_wrapped(TaskOneHot)):
        return
    for column, one_hot in enumerate(env.get_attr("one_hot")):
        of_column = observations[:, -len(one_hot) :] if isinstance(observations, np.ndarray) else observations[TASK]
        if not np.array_equal(of_column[column], one_hot):
            raise ValueError(
                f"the observations of column {column} do not end with the one-hot of its task: let TaskOneHot be the "
                "last wrapper that changes observations"
            )
