"""Evaluation of every task; Stable-Baselines3's `evaluate_policy` may leave out tasks on columns of several."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EventCallback,
)
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from mtrl.limits import check_number
from mtrl.rl.columns import (
    check_kind,
    check_one_hots,
    check_places,
    column_counts,
    names_of_columns,
    task_names,
    with_monitor,
)


@dataclass(frozen=True)
class TaskReturns:
    """The undiscounted returns of the episodes that a model played in one task."""

    returns: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(np.mean(self.returns))


def evaluate_tasks(
    model: Any, env: GymEnv, n_eval_episodes: int = 10, deterministic: bool = True
) -> dict[str, TaskReturns]:
    """Play in every task.

    `evaluate_policy` of Stable-Baselines3 divides its episodes over all columns, so that with fewer episodes than
    columns some tasks are never played. Here every task has `n_eval_episodes` of them, divided over its own columns.

    Args:
        model: an agent with `predict`.
        env: an environment, or a vector environment with columns for each task, which is reset. Columns that do not
            report their episodes' returns are wrapped in a `VecMonitor`.
        n_eval_episodes: episodes of each task, at least 1. Default 10.
        deterministic: whether the actions are greedy. Default True.

    Returns:
        The returns by the names of the tasks, in the order of the columns.

    Raises:
        ValueError: `n_eval_episodes` is below 1, the columns are not as described, or the one-hot of a task is another
            one than that with which the model learned the task.
    """
    check_number("n_eval_episodes", n_eval_episodes, least=1, whole=True)
    env = evaluation_env(env)
    names = task_names(env)
    check_places(model, env, names)
    of_columns = names_of_columns(env)
    counts = column_counts(env)
    wanted = np.array([(n_eval_episodes + place) // count for count in counts for place in range(count)])
    returns: dict[str, list[float]] = {name: [] for name in names}
    played = np.zeros(env.num_envs, dtype=np.int64)
    observations = env.reset()
    check_one_hots(env, observations)  # type: ignore[arg-type] # no dictionaries
    while (played < wanted).any():
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, dones, infos = env.step(actions)
        for column in np.flatnonzero(dones & (played < wanted)):
            returns[of_columns[column]].append(float(infos[column]["episode"]["r"]))
            played[column] += 1
    return {name: TaskReturns(tuple(found)) for name, found in returns.items()}


def evaluation_env(env: GymEnv) -> VecEnv:
    """The environment as a vector environment whose columns report the returns of their episodes."""
    check_kind(env)
    return with_monitor(env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env]))


class TaskEvalCallback(EvalCallback):
    """Plays every task now and then, and records `eval/<task>/return`, their mean and the worst of them.

    Other callbacks that build on Stable-Baselines3's `EvalCallback`, such as `StopTrainingOnRewardThreshold`, work with
    this one; their reward is the mean over the tasks.

    Args:
        eval_env: the environment to play in, apart from the one that the model learns in.
        callback_on_new_best: called when the mean over the tasks is the highest so far. Default None.
        callback_after_eval: called after each evaluation. Default None.
        n_eval_episodes: episodes of each task. Default 10.
        eval_freq: calls of `env.step` from one evaluation to the next. Default 10,000.
        best_model_save_path: a folder for `best_model.zip`, the model with the highest mean over the tasks so far.
            Default None: no model is saved.
        deterministic: see `evaluate_tasks`. Default True.
        verbose: 1 prints the mean returns. Default 0.

    Attributes:
        results: the last evaluation; empty before the first.
        last_mean_reward: the mean over the tasks in the last evaluation.
        best_mean_reward: the highest mean over the tasks so far; minus infinity before the first evaluation.

    Raises:
        ValueError: `eval_freq` or `n_eval_episodes` is below 1, or the columns' tasks are not as agents need them.
    """

    def __init__(
        self,
        eval_env: GymEnv,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_episodes: int = 10,
        eval_freq: int = 10_000,
        best_model_save_path: str | Path | None = None,
        deterministic: bool = True,
        verbose: int = 0,
    ) -> None:
        check_number("eval_freq", eval_freq, least=1, whole=True)
        check_number("n_eval_episodes", n_eval_episodes, least=1, whole=True)
        env = evaluation_env(eval_env)
        task_names(env)
        super().__init__(
            env,
            callback_on_new_best,
            callback_after_eval,
            n_eval_episodes,
            eval_freq,
            best_model_save_path=None if best_model_save_path is None else str(best_model_save_path),
            deterministic=deterministic,
            verbose=verbose,
            warn=False,
        )
        self.results: dict[str, TaskReturns] = {}

    def _init_callback(self) -> None:
        assert isinstance(self.eval_env, VecEnv)
        check_places(self.model, self.eval_env, task_names(self.eval_env))
        with warnings.catch_warnings():  # that wrappers such as a VecMonitor differ is no fault
            warnings.simplefilter("ignore", UserWarning)
            super()._init_callback()

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq:
            return True
        self.results = evaluate_tasks(self.model, self.eval_env, self.n_eval_episodes, self.deterministic)
        means = {name: of_task.mean for name, of_task in self.results.items()}
        self.last_mean_reward = float(np.mean([*means.values()]))
        for name, mean in means.items():
            self.logger.record(f"eval/{name}/return", mean)
        self.logger.record("eval/mean_return", self.last_mean_reward)
        self.logger.record("eval/worst_return", min(means.values()))
        if self.verbose:
            print(f"step {self.num_timesteps}: " + ", ".join(f"{name} {mean:.1f}" for name, mean in means.items()))
        goes_on = True
        if self.last_mean_reward > self.best_mean_reward:
            self.best_mean_reward = self.last_mean_reward
            if self.best_model_save_path is not None:
                self.model.save(Path(self.best_model_save_path, "best_model.zip"))
            if self.callback_on_new_best is not None:
                goes_on = self.callback_on_new_best.on_step()
        return goes_on and self._on_event()


def check_callback(callback: BaseCallback, can_be_saved: bool) -> None:
    """Look for what cannot work before training begins, and warn about evaluations that leave out tasks.

    Raises:
        ValueError: a callback saves models, and the model can't be saved, because its balancer was given as an object.
    """
    for part in _parts(callback):
        saves = isinstance(part, CheckpointCallback) or getattr(part, "best_model_save_path", None) is not None
        if saves and not can_be_saved:
            raise ValueError(
                f"{type(part).__name__} saves models, and a model whose balancer was given as an object can't be "
                "saved: give the balancer's name and balancer_kwargs"
            )
        if not isinstance(part, EvalCallback) or isinstance(part, TaskEvalCallback):
            continue
        if _has_several_tasks(part.eval_env):
            warnings.warn(
                "EvalCallback divides its episodes over all columns and may leave out tasks; "
                "mtrl.rl.TaskEvalCallback plays every task",
                stacklevel=2,
            )


def _has_several_tasks(env: VecEnv) -> bool:
    try:
        return len(task_names(env)) > 1
    except ValueError:  # columns that no agent here would learn on
        return True


def _parts(callback: Any) -> Iterator[BaseCallback]:
    """A callback and all callbacks that it calls."""
    if callback is None:
        return
    yield callback
    if isinstance(callback, CallbackList):
        for part in callback.callbacks:
            yield from _parts(part)
    elif isinstance(callback, EventCallback):
        yield from _parts(callback.callback)
