"""Evaluation of every task; Stable-Baselines3's `evaluate_policy` may leave out tasks on columns of several."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from mtrl.limits import check_names, check_number
from mtrl.rl.columns import (
    check_kind,
    check_one_hots,
    check_places,
    names_of_columns,
    one_hots,
    task_names,
    task_of,
    with_monitor,
)
from mtrl.rl.episodes import long_episode, succeeded
from mtrl.rl.tasks import AnyTask


@dataclass(frozen=True)
class TaskReturns:
    """What came of the episodes that a model played in one task.

    Attributes:
        returns: the undiscounted return of each episode, of rewards as the environment gave them.
        lengths: the number of steps of each episode.
        successes: whether each episode was a success (see `evaluate_tasks`); None if the task does not say what one is.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...] = ()
    successes: tuple[bool, ...] | None = None

    @property
    def mean(self) -> float:
        """The mean of the returns."""
        return float(np.mean(self.returns))

    @property
    def deviation(self) -> float:
        """The standard deviation of the returns, as `evaluate_policy` gives it (divided by their number)."""
        return float(np.std(self.returns))

    @property
    def success(self) -> float | None:
        """The share of episodes that were a success, from 0 to 1; None if the task does not say what one is."""
        return None if self.successes is None else float(np.mean(self.successes))


def evaluate_tasks(
    model: Any,
    env: GymEnv,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    tasks: str | AnyTask | Iterable[str | AnyTask] | None = None,
) -> dict[str, TaskReturns]:
    """Play in every task.

    `evaluate_policy` of Stable-Baselines3 divides its episodes over all columns, so that with fewer episodes than
    columns some tasks are never played. Here every task has `n_eval_episodes` of them, divided over its own columns.

    An episode is a success if its last `info` says so under `is_success`, or any of its `info`s under `success`. If
    there is neither, it is one if its return reaches the `solved_at` of the column's task, or the `reward_threshold`
    with which Gymnasium registered the environment. Columns of a `SubprocVecEnv` can't be asked for that threshold:
    their `task` says it, as an object with a `name` and a `solved_at`.

    Args:
        model: an agent with `predict`.
        env: an environment, or a vector environment with columns for each task, which is reset. It may have fewer
            tasks than the model, more or fewer columns of each, and another order of tasks. Columns that do not report
            their episodes' returns are wrapped in a `VecMonitor`. If it is the environment that the model learns in,
            the model begins new episodes when it goes on learning.
        n_eval_episodes: episodes of each task, at least 1. Default 10.
        deterministic: whether the actions are greedy. Default True.
        render: whether to call `env.render()` after each step. Default False.
        tasks: names of the tasks to play, or the tasks themselves. Default None: all tasks of the columns.

    An episode that goes on for 100,000 steps is warned about, because an environment without an end or a time limit
    would be played for ever.

    Returns:
        What came of it by the names of the tasks, in the order of `tasks`, or of the columns.

    Raises:
        ValueError: `n_eval_episodes` is below 1, a task has no column, the columns are not as described, the one-hot of
            a task is another one than that with which the model learned it, the environment is wrapped in
            `VecNormalize` and the model did not learn with it, or `learn` is running in the environment.
    """
    check_number("n_eval_episodes", n_eval_episodes, least=1, whole=True)
    env = evaluation_env(env)
    check_fits(model, env)
    names = task_names(env)
    wanted = chosen_tasks(tasks, names)
    of_columns = names_of_columns(env)
    numbers = {name: iter(_divided(n_eval_episodes, of_columns.count(name))) for name in wanted}
    episodes = [next(numbers[name]) if name in numbers else 0 for name in of_columns]
    rows = _play(model, env, episodes, deterministic, render)
    return {name: _summary([row for row, of in zip(rows, of_columns, strict=True) if of == name]) for name in wanted}


def chosen_tasks(tasks: str | AnyTask | Iterable[str | AnyTask] | None, names: Sequence[str]) -> tuple[str, ...]:
    """The tasks to play, each once.

    Raises:
        ValueError: there are none, or one has no column.
    """
    if tasks is None:
        return tuple(names)
    given = (tasks,) if isinstance(tasks, str | AnyTask) else tasks
    chosen = tuple(dict.fromkeys(task.name if isinstance(task, AnyTask) else task for task in given))
    if not chosen:
        raise ValueError(f"tasks are empty; the environment has {', '.join(names)}")
    check_names("task", chosen, names)
    return chosen


def _divided(episodes: int, columns: int) -> list[int]:
    """How many of the episodes each column plays; the numbers are not more than 1 apart."""
    return [(episodes + place) // columns for place in range(columns)]


class _Played:
    """The episodes of one column so far."""

    def __init__(self, task: str, solved_at: float | None) -> None:
        self._task, self.solved_at = task, solved_at
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.successes: list[bool | None] = []
        self._said: list[dict[str, Any]] = []  # what each step of this episode has said of success

    def see(self, info: Mapping[str, Any], done: bool) -> None:
        """See what a step said, and whether the episode ended with it."""
        if (problem := long_episode(len(self._said) + 1, self._task)) is not None:
            warnings.warn(problem, stacklevel=4)
        self._said.append({name: info[name] for name in ("success", "is_success") if name in info})
        if not done:
            return
        if (episode := info.get("episode")) is None:
            raise ValueError("a Monitor has not seen the end of an episode: let it be outside every TimeLimit")
        self.returns.append(float(episode["r"]))
        self.lengths.append(int(episode["l"]))
        self.successes.append(succeeded(self._said, self.returns[-1], self.solved_at))
        self._said = []


def _play(model: Any, env: VecEnv, episodes: Sequence[int], deterministic: bool, render: bool) -> list[_Played]:
    """Play as many episodes in each column as `episodes` says."""
    observations = env.reset()
    check_one_hots(env, observations)  # type: ignore[arg-type] # no dictionaries
    columns = [_Played(name, _solved_at(env, column)) for column, name in enumerate(names_of_columns(env))]
    while any(len(column.returns) < number for column, number in zip(columns, episodes, strict=True)):
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, dones, infos = env.step(actions)
        if render:
            env.render()
        for column, number, info, done in zip(columns, episodes, infos, dones, strict=True):
            if len(column.returns) < number:
                column.see(info, bool(done))
    if _learns_in(model, env):
        model._last_obs = None  # the episodes that the model was in are over
    return columns


def _learns_in(model: Any, env: VecEnv) -> bool:
    """Whether an environment has the columns that the model was made with."""
    own = getattr(model, "env", None)
    return isinstance(own, VecEnv) and own.unwrapped is env.unwrapped


def _solved_at(env: VecEnv, column: int) -> float | None:
    """The return from which an episode of the column is a success; None where nothing says so."""
    solved_at: float | None = getattr(task_of(env, column), "solved_at", None)
    unwrapped = env.unwrapped
    if solved_at is None and isinstance(unwrapped, DummyVecEnv):  # other processes could not send every spec
        solved_at = getattr(unwrapped.envs[column].spec, "reward_threshold", None)
    return solved_at


def _summary(columns: Sequence[_Played]) -> TaskReturns:
    successes = [success for column in columns for success in column.successes]
    return TaskReturns(
        tuple(value for column in columns for value in column.returns),
        tuple(value for column in columns for value in column.lengths),
        None if None in successes else tuple(bool(success) for success in successes),
    )


def evaluation_env(env: GymEnv) -> VecEnv:
    """The environment as a vector environment whose columns report the returns of their episodes."""
    check_kind(env)
    return with_monitor(env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env]))


def check_fits(model: Any, env: VecEnv) -> None:
    """Check that the model can play in the environment as it has learned to.

    Raises:
        ValueError: observations end with a one-hot of another size, or a task has another one-hot than that with which
            the model learned it; or the environment normalises and that of the model did not; or the model is learning
            in the environment at this moment.
    """
    if getattr(model, "is_learning", False) and _learns_in(model, env):
        raise ValueError("the model is learning in the environment to evaluate in; make another one for evaluations")
    if unwrap_vec_normalize(env) is not None and getattr(model, "get_vec_normalize_env", lambda: env)() is None:
        raise ValueError(
            "the environment to evaluate in is wrapped in VecNormalize, and the one that the model learned in is not: "
            "evaluate in columns like those that it learned in"
        )
    names = task_names(env)
    learned, found = getattr(model, "one_hot_size", None), one_hots(env, names).size
    if learned is not None and learned != found:
        raise ValueError(
            f"the model has learned with a one-hot of {learned} tasks, and the environment has one of {found}: give "
            "make_task_vec_env " + ("all tasks of the model as one_hot_tasks" if learned else "variant='blind'")
        )
    check_places(model, env, names)


def warn_of_evaluate_policy(caller: FrameType | None) -> bool:
    """Warn if `caller`, which asked for actions, is `evaluate_policy` on columns of several tasks.

    Returns:
        Whether it is. A model need not ask again then.
    """
    if caller is None or caller.f_code is not evaluate_policy.__code__ or not has_several_tasks(caller.f_locals["env"]):
        return False
    above = caller.f_back
    if above is None or not isinstance(above.f_locals.get("self"), EvalCallback):  # which was warned about before
        warnings.warn(
            "evaluate_policy shares its episodes out over all columns and may leave out tasks; "
            "mtrl.rl.evaluate_tasks plays every task",
            stacklevel=5,  # the line that called `evaluate_policy`
        )
    return True


def has_several_tasks(env: VecEnv) -> bool:
    """Whether an environment has columns of more than one task."""
    try:
        return len(task_names(env)) > 1
    except ValueError:  # columns that no agent here would learn on
        return True
