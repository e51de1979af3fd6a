"""Runs one training from settings to results; every method's `train.py` ends here."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter, Logger

import agents
from agents import MultiTaskDQN, NonFiniteError
from envs import BASE_ID, ColumnError, get_tasks, make_task_vec_env
from experiments.analysis.runs import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    MODEL_FILE,
    PREVIOUS_FILE,
    write_json,
)
from experiments.program.flags import UsageError
from experiments.program.stopping import StoppedError, StopSignal, StopSignals, disk_errors
from experiments.program.weights_and_biases import WANDB_FOLDER, check_wandb
from experiments.training.checkpoints import Checkpoints, MetricsFile, find_run, locked
from experiments.training.config import TrainConfig
from experiments.training.display import TrainingDisplay
from experiments.training.evaluation import CURVE_SEED, FINAL_SEED, Evaluation, evaluate
from experiments.training.tracking import TENSORBOARD_FOLDER, Episodes, Views


def train(config: TrainConfig) -> Evaluation:
    """Train one agent, evaluate it and leave config.json, metrics.jsonl, model.zip and evaluation.json in its folder.

    evaluation.json is written last: a folder that has it is a finished run. An unfinished run with the same settings is
    continued from its last checkpoint. Views of the metrics are in `tensorboard/` and `wandb/`, where wanted.

    Raises:
        ValueError: a setting is out of range.
        UsageError: the folder holds a finished run or one with other settings, is in use, or can't be written to.
        StoppedError: a signal, a failing environment or a disk ended the run; it says how to go on.
    """
    # Everything that can be wrong is found before anything is written.
    torch.set_num_threads(1)  # two threads are slower at these sizes, and runs side by side would fight for cores
    folder = config.run_dir
    tasks = get_tasks(config.tasks)
    _refuse_finished(folder, config.overwrite)
    check_wandb(config.wandb)
    env = make_task_vec_env(tasks, config.envs_per_task, config.seed, config.variant, step_timeout=config.step_timeout)
    kind: type[MultiTaskDQN] = getattr(agents, config.agent)
    agent = kind("MlpPolicy", env, **config.agent_kwargs)
    with disk_errors(folder, UsageError):
        _make(folder)
    # The views outlive the signals' block: a run that is finished and only has to be shown can't be stopped any more.
    with locked(folder), Views() as views:
        with StopSignals() as signals:
            _refuse_finished(folder, config.overwrite)  # another process may have finished it by now
            description = describe(config)
            saved = find_run(folder, description) if config.resume and not config.overwrite else None
            if saved is not None and not config.quiet:
                print(f"{config.run_name}, seed {config.seed}: continuing from '{saved.path}'")
            with disk_errors(folder, UsageError):
                _clear(folder, continued=saved is not None)
                write_json(folder / CONFIG_FILE, description)
                metrics = MetricsFile(folder / METRICS_FILE)
            views.open(config, description, None if saved is None else saved.steps)
            names = [task.name for task in tasks]
            episodes = Episodes(names, config.envs_per_task)
            parts = [episodes, *_parts(config, names)]
            checkpoints = Checkpoints(
                folder, description, env, metrics, parts, signals, config.checkpoint_interval, saved, views.settle
            )
            del saved  # the checkpoint's replay is large
            try:
                with disk_errors(folder, StoppedError):
                    _learn(config, agent, [metrics, views], [checkpoints, *parts])
                    signals.answer_at_once()
                    evaluation = _finish(config, agent, names)
                    checkpoints.remove()
            except StopSignal as stop:
                raise StoppedError(f"stopped by {stop}; {checkpoints.outlook}", stop.status) from None
            except StoppedError as stop:
                raise StoppedError(f"{stop}; {checkpoints.outlook}") from stop
            finally:
                env.close()
        views.finish(evaluation.as_json(), episodes)
    if not config.quiet:
        console = Console()
        console.print(
            evaluation.table(f"{config.run_name}, seed {config.seed}: {config.final_episodes} greedy episodes")
        )
        console.print(f"results in {folder}; {checkpoints.cost}")
    return evaluation


def _parts(config: TrainConfig, names: list[str]) -> list[CurveEvaluation | StopAfterEpisodes]:
    """Callbacks that the settings ask for."""
    parts: list[CurveEvaluation | StopAfterEpisodes] = []
    if config.eval_interval:
        parts.append(CurveEvaluation(names, config.eval_interval, config.eval_episodes))
    if config.episodes_per_task is not None:
        parts.append(StopAfterEpisodes(config.episodes_per_task, len(names), config.envs_per_task))
    return parts


def _learn(config: TrainConfig, agent: MultiTaskDQN, outputs: list[KVWriter], callbacks: list[Any]) -> None:
    """Train, with `callbacks`, the first of which are the checkpoints, and write metrics to all `outputs`.

    Raises:
        StoppedError: an environment failed, and the checkpoints have saved the last whole step; or a number was not
            finite.
    """
    checkpoints = callbacks[0]
    logger = Logger(str(config.run_dir), outputs)
    agent.set_logger(logger)
    display = TrainingDisplay(f"{config.run_name}, seed {config.seed}", config.total_steps)
    if not config.quiet:
        callbacks = [*callbacks, display]
    try:
        agent.learn(config.total_steps, CallbackList(callbacks), log_interval=config.log_interval)
        agent.dump_logs()
    except ColumnError as error:
        checkpoints.save()
        raise StoppedError(str(error)) from error
    except NonFiniteError as error:  # what it has been through since the last checkpoint is not worth keeping
        raise StoppedError(f"{error}; {checkpoints.kept}") from error
    except UsageError:
        raise
    except ValueError as error:  # past the checks above this is a fault of ours, not of the user's: keep the traceback
        raise RuntimeError("training failed") from error
    finally:
        display.stop()
        logger.close()


def _finish(config: TrainConfig, agent: MultiTaskDQN, names: list[str]) -> Evaluation:
    """Save the model, and evaluate it."""
    agent.save(config.run_dir / MODEL_FILE)
    evaluation = evaluate(agent, names, config.final_episodes, FINAL_SEED)
    write_json(config.run_dir / EVALUATION_FILE, evaluation.as_json())
    return evaluation


def describe(config: TrainConfig) -> dict[str, Any]:
    """The contents of config.json: what ran, with which settings, on which versions."""
    packages = ("mtrl", "gymnasium", "box2d", "stable-baselines3", "torch", "numpy")
    return {
        "run": config.run_name,
        "method": config.run_method,
        "agent": config.agent,
        "balancer": config.balancer_name,
        "settings": config.settings,
        "environments": {task.name: task.env_id for task in get_tasks(config.tasks)},
        "base_environment": BASE_ID,
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


class CurveEvaluation(BaseCallback):
    """Evaluates greedily every `interval` environment steps and logs `eval/<task>/return`."""

    def __init__(self, tasks: list[str], interval: int, episodes: int) -> None:
        super().__init__()
        self._tasks = tasks
        self._interval = interval
        self._episodes = episodes
        self._next = interval

    def state_dict(self) -> dict[str, Any]:
        """When the next evaluation is due."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self._next = state["next"]

    def _on_step(self) -> bool:
        return True  # the work is done at the end of a rollout, when the step has been stored

    def _on_rollout_end(self) -> None:
        if self.num_timesteps < self._next:
            return
        self._next += self._interval
        assert isinstance(self.model, MultiTaskDQN)
        evaluation = evaluate(self.model, self._tasks, self._episodes, CURVE_SEED)
        for task, result in evaluation.tasks.items():
            self.logger.record(f"eval/{task}/return", result.mean)
        self.logger.record("eval/mean_return", evaluation.mean)
        self.model.dump_logs()


class StopAfterEpisodes(BaseCallback):
    """Stops when every task has finished `episodes` episodes."""

    def __init__(self, episodes: int, num_tasks: int, envs_per_task: int) -> None:
        super().__init__()
        self._episodes = episodes
        self._envs_per_task = envs_per_task
        self._finished = [0] * num_tasks

    def state_dict(self) -> dict[str, Any]:
        """Episodes that each task has finished."""
        return {"finished": list(self._finished)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self._finished = list(state["finished"])

    def _on_step(self) -> bool:
        for column, done in enumerate(self.locals["dones"]):
            self._finished[column // self._envs_per_task] += bool(done)
        return min(self._finished) < self._episodes


def _refuse_finished(folder: Path, overwrite: bool) -> None:
    """Raise `UsageError` if the run in `folder` is finished and must not be overwritten."""
    if (folder / EVALUATION_FILE).exists() and not overwrite:
        raise UsageError(f"'{folder}' holds a finished run; give --overwrite to replace it, or another --seed")


def _make(folder: Path) -> None:
    """Make the run's folder.

    Raises:
        UsageError: a file is in the way.
    """
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise UsageError(f"'{parent}' is a file; results need a folder")
    folder.mkdir(parents=True, exist_ok=True)


def _clear(folder: Path, continued: bool) -> None:
    """Delete what an earlier run left in `folder`, save what it needs to be continued."""
    files, folders = [EVALUATION_FILE, MODEL_FILE, CONFIG_FILE], []
    if not continued:
        files += [METRICS_FILE, CHECKPOINT_FILE, PREVIOUS_FILE]
        folders += [TENSORBOARD_FOLDER, WANDB_FOLDER]
    for path in (*(folder / name for name in files), *folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)
    for path in (folder / name for name in folders):
        if path.exists():
            shutil.rmtree(path)
