"""Evaluation of every task; Stable-Baselines3's `evaluate_policy` may leave out tasks on columns of several."""

from __future__ import annotations

import math
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
from stable_baselines3.common.vec_env import VecEnv

from mtrl.limits import check_number
from mtrl.rl.columns import task_names


@dataclass(frozen=True)
class TaskReturns:
    """The undiscounted returns of the episodes that a model played in one task."""

    returns: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(np.mean(self.returns))


def evaluate_tasks(model: Any, env: VecEnv, episodes: int = 10, deterministic: bool = True) -> dict[str, TaskReturns]:
    """Play in every task.

    `evaluate_policy` of Stable-Baselines3 divides its episodes over all columns, so that with fewer episodes than
    columns some tasks are never played. Here every task has `episodes` of them, divided over its own columns.

    Args:
        model: an agent with `predict`.
        env: a vector environment whose columns report their episodes' returns (`Monitor`, `VecMonitor`), as those of
            `make_task_vec_env` do. It is reset.
        episodes: of each task, at least 1. Default 10.
        deterministic: whether the actions are greedy. Default True.

    Returns:
        The returns by the names of the tasks, in the order of the columns.

    Raises:
        ValueError: `episodes` is below 1, the columns are not as described, or a column reports no return.
    """
    check_number("episodes", episodes, least=1, whole=True)
    names = task_names(env)
    each = env.num_envs // len(names)
    wanted = np.array([(episodes + place) // each for _ in names for place in range(each)])
    returns: dict[str, list[float]] = {name: [] for name in names}
    played = np.zeros(env.num_envs, dtype=np.int64)
    observations = env.reset()
    while (played < wanted).any():
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, dones, infos = env.step(actions)
        for column in np.flatnonzero(dones & (played < wanted)):
            if "episode" not in infos[column]:
                raise ValueError(
                    f"column {column} reports no return; wrap the environments in Monitor, or use VecMonitor"
                )
            returns[names[column // each]].append(float(infos[column]["episode"]["r"]))
            played[column] += 1
    return {name: TaskReturns(tuple(found)) for name, found in returns.items()}


class TaskEvalCallback(BaseCallback):
    """Plays every task now and then, and records `eval/<task>/return`, their mean and the worst of them.

    Args:
        eval_env: the environment to play in, apart from the one that the model learns in.
        eval_freq: calls of `env.step` from one evaluation to the next. Default 10,000.
        episodes: of each task. Default 10.
        deterministic: see `evaluate_tasks`. Default True.
        best_model_save_path: a folder for `best_model.zip`, the model with the highest mean over the tasks so far.
            Default None: no model is saved.
        verbose: 1 prints the mean returns. Default 0.

    Attributes:
        results: the last evaluation; empty before the first.
        best_mean: the highest mean over the tasks so far; minus infinity before the first evaluation.

    Raises:
        ValueError: `eval_freq` or `episodes` is below 1.
    """

    def __init__(
        self,
        eval_env: VecEnv,
        eval_freq: int = 10_000,
        episodes: int = 10,
        deterministic: bool = True,
        best_model_save_path: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.eval_env = eval_env
        self.eval_freq = check_number("eval_freq", eval_freq, least=1, whole=True)
        self.episodes = check_number("episodes", episodes, least=1, whole=True)
        self.deterministic = deterministic
        self.best_model_save_path = best_model_save_path
        self.results: dict[str, TaskReturns] = {}
        self.best_mean = -math.inf

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            self.results = evaluate_tasks(self.model, self.eval_env, self.episodes, self.deterministic)
            means = {name: of_task.mean for name, of_task in self.results.items()}
            over_tasks = float(np.mean([*means.values()]))
            for name, mean in means.items():
                self.logger.record(f"eval/{name}/return", mean)
            self.logger.record("eval/mean_return", over_tasks)
            self.logger.record("eval/worst_return", min(means.values()))
            if over_tasks > self.best_mean:
                self.best_mean = over_tasks
                if self.best_model_save_path is not None:
                    Path(self.best_model_save_path).mkdir(parents=True, exist_ok=True)
                    self.model.save(Path(self.best_model_save_path, "best_model.zip"))
            if self.verbose:
                print(f"step {self.num_timesteps}: " + ", ".join(f"{name} {mean:.1f}" for name, mean in means.items()))
        return True


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
        if isinstance(part, EvalCallback) and _has_several_tasks(part.eval_env):
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
