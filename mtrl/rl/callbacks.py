"""A callback that evaluates every task, and what is checked of callbacks before training begins."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EventCallback,
)
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from mtrl.limits import check_choice, check_number
from mtrl.rl.columns import task_names
from mtrl.rl.evaluation import TaskReturns, check_fits, chosen_tasks, evaluate_tasks, evaluation_env, has_several_tasks
from mtrl.rl.tables import widen_tables
from mtrl.rl.tasks import AnyTask

BestBy = Literal["mean", "worst"]


class TaskEvalCallback(EvalCallback):
    """Plays every task now and then, logs what came of it task by task, and keeps the best model.

    It records `eval/<task>/return` and its standard deviation `eval/<task>/deviation`, `eval/<task>/success` where the
    task says what a success is (see `evaluate_tasks`), `eval/mean_return` over the tasks and `eval/worst_return`, and
    writes them to the logger at once. Other callbacks that build on Stable-Baselines3's `EvalCallback`, such as
    `StopTrainingOnRewardThreshold`, work with this one; their reward is the one that `best_by` names.

    The arguments have the names and the order that they have in `EvalCallback`. Its `warn` is missing, because columns
    without a `Monitor` are given one.

    Args:
        eval_env: the environment to play in, apart from the one that the model learns in.
        callback_on_new_best: called when the model is the best so far. Default None.
        callback_after_eval: called after each evaluation. Default None.
        n_eval_episodes: episodes of each task. Default 10.
        eval_freq: calls of `env.step` from one evaluation to the next. Default 10,000.
        log_path: a folder for `evaluations.npz`, in which all evaluations so far are kept: `timesteps` (E,), `tasks`
            (T,), and `results`, `ep_lengths` and, if every task says what a success is, `successes`, each (E, T,
            `n_eval_episodes`). Default None: no file is written.
        best_model_save_path: a folder for `best_model.zip`, the best model so far. Default None: no model is saved.
        deterministic: see `evaluate_tasks`. Default True.
        render: see `evaluate_tasks`. Default False.
        verbose: 1 prints the mean returns. Default 0.
        best_by: what the best model is best by: `"mean"`, the mean over the tasks of their mean returns, or
            `"worst"`, the lowest of their mean returns. Default `"mean"`. Where the tasks' returns differ in size, a
            mean is that of the largest.
        tasks: names of the tasks to play, or the tasks themselves. Default None: all tasks of `eval_env`.

    Attributes:
        results: the last evaluation; empty before the first.
        last_mean_reward: the value of `best_by` in the last evaluation.
        best_mean_reward: the highest of these values so far; minus infinity before the first evaluation.

    Raises:
        ValueError: `eval_freq` or `n_eval_episodes` is below 1, `best_by` or a task is unknown, or the columns' tasks
            are not as agents need them.
    """

    def __init__(
        self,
        eval_env: GymEnv,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_episodes: int = 10,
        eval_freq: int = 10_000,
        log_path: str | Path | None = None,
        best_model_save_path: str | Path | None = None,
        deterministic: bool = True,
        render: bool = False,
        verbose: int = 0,
        *,
        best_by: BestBy = "mean",
        tasks: str | AnyTask | Iterable[str | AnyTask] | None = None,
    ) -> None:
        check_number("eval_freq", eval_freq, least=1, whole=True)
        check_number("n_eval_episodes", n_eval_episodes, least=1, whole=True)
        check_choice("best_by", best_by, ("mean", "worst"))
        env = evaluation_env(eval_env)
        chosen = chosen_tasks(tasks, task_names(env))
        super().__init__(
            env,
            callback_on_new_best,
            callback_after_eval,
            n_eval_episodes,
            eval_freq,
            log_path=None if log_path is None else str(log_path),
            best_model_save_path=None if best_model_save_path is None else str(best_model_save_path),
            deterministic=deterministic,
            render=render,
            verbose=verbose,
            warn=False,
        )
        self.best_by = best_by
        self.tasks = chosen
        self.results: dict[str, TaskReturns] = {}
        self._history: list[tuple[int, dict[str, TaskReturns]]] = []

    def _init_callback(self) -> None:
        assert isinstance(self.eval_env, VecEnv)
        check_fits(self.model, self.eval_env)
        with warnings.catch_warnings():  # that wrappers such as a VecMonitor differ is no fault
            warnings.simplefilter("ignore", UserWarning)
            super()._init_callback()

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq:
            return True
        self.results = evaluate_tasks(
            self.model, self.eval_env, self.n_eval_episodes, self.deterministic, self.render, self.tasks
        )
        means = [of_task.mean for of_task in self.results.values()]
        self.last_mean_reward = float(np.mean(means)) if self.best_by == "mean" else min(means)
        self._log()
        if self.log_path is not None:
            self._history.append((self.num_timesteps, self.results))
            self._write(self.log_path)
        goes_on = True
        if self.last_mean_reward > self.best_mean_reward:
            self.best_mean_reward = self.last_mean_reward
            if self.best_model_save_path is not None:
                self.model.save(Path(self.best_model_save_path, "best_model.zip"))
            if self.callback_on_new_best is not None:
                goes_on = self.callback_on_new_best.on_step()
        return goes_on and self._on_event()

    def _log(self) -> None:
        """Write the last evaluation to the logger, with the step at which it was made."""
        record = self.logger.record
        means = {name: of_task.mean for name, of_task in self.results.items()}
        for name, of_task in self.results.items():
            record(f"eval/{name}/return", of_task.mean)
            record(f"eval/{name}/deviation", of_task.deviation)
            if of_task.success is not None:
                record(f"eval/{name}/success", of_task.success)
        record("eval/mean_return", float(np.mean([*means.values()])))
        record("eval/worst_return", min(means.values()))
        record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        widen_tables(self.logger)
        self.logger.dump(self.num_timesteps)
        if self.verbose:
            print(f"step {self.num_timesteps}: " + ", ".join(f"{name} {mean:.1f}" for name, mean in means.items()))

    def _write(self, path: str) -> None:
        """Write all evaluations so far."""
        evaluations = [list(results.values()) for _, results in self._history]
        arrays: dict[str, Any] = {
            "timesteps": [steps for steps, _ in self._history],
            "tasks": [*self.results],
            "results": [[of_task.returns for of_task in results] for results in evaluations],
            "ep_lengths": [[of_task.lengths for of_task in results] for results in evaluations],
        }
        successes = [[of_task.successes for of_task in results] for results in evaluations]
        if all(of_task is not None for results in successes for of_task in results):
            arrays["successes"] = successes
        np.savez(path, **arrays)


def check_callback(callback: BaseCallback, can_be_saved: bool) -> None:
    """Look for what cannot work before training begins, and warn about evaluations that leave out tasks.

    Raises:
        ValueError: a callback saves models, and the model can't be saved, because its balancer was given as an object;
            or a callback evaluates in an environment that is wrapped in `VecNormalize`.
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
        if unwrap_vec_normalize(part.eval_env) is not None:
            raise ValueError(
                f"the eval_env of {type(part).__name__} is wrapped in VecNormalize, and the environment that the model "
                "learns in is not: evaluate in columns like those that it learns in"
            )
        if has_several_tasks(part.eval_env):
            warnings.warn(
                "EvalCallback divides its episodes over all columns and may leave out tasks; "
                "mtrl.rl.TaskEvalCallback plays every task",
                stacklevel=2,
            )


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
        yield from _parts(getattr(callback, "callback_on_new_best", None))
