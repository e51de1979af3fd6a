"""Runs one training from settings to results; every method's `train.py` ends here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import JSONOutputFormat, Logger

import agents
from agents import MultiTaskDQN
from envs import BASE_ID, get_tasks, make_task_vec_env
from experiments.cli import UsageError
from experiments.config import TrainConfig
from experiments.display import TrainingDisplay
from experiments.evaluation import CURVE_SEED, FINAL_SEED, Evaluation, evaluate
from experiments.runs import CONFIG_FILE, EVALUATION_FILE, METRICS_FILE, MODEL_FILE


def train(config: TrainConfig) -> Evaluation:
    """Train one agent, evaluate it and leave config.json, metrics.jsonl, model.zip and evaluation.json in its folder.

    evaluation.json is written last: a folder that has it is a finished run.

    Raises:
        ValueError: a setting is out of range.
        UsageError: the folder holds a finished run, or can't be made.
    """
    # Everything that can be wrong is found before anything is written.
    torch.set_num_threads(1)  # two threads are slower at these sizes, and runs side by side would fight for cores
    folder = config.run_dir
    tasks = get_tasks(config.tasks)
    names = [task.name for task in tasks]
    if (folder / EVALUATION_FILE).exists() and not config.overwrite:
        raise UsageError(f"'{folder}' holds a finished run; give --overwrite to replace it, or another --seed")
    env = make_task_vec_env(tasks, config.envs_per_task, config.seed, config.variant)
    kind: type[MultiTaskDQN] = getattr(agents, config.agent)
    agent = kind("MlpPolicy", env, **config.agent_kwargs)
    _prepare(folder)

    _write_json(folder / CONFIG_FILE, describe(config))
    logger = Logger(str(folder), [JSONOutputFormat(str(folder / METRICS_FILE))])
    agent.set_logger(logger)
    callbacks: list[BaseCallback] = []
    if config.eval_interval:
        callbacks.append(CurveEvaluation(names, config.eval_interval, config.eval_episodes))
    if config.episodes_per_task is not None:
        callbacks.append(StopAfterEpisodes(config.episodes_per_task, len(names), config.envs_per_task))
    display = TrainingDisplay(f"{config.run_name}, seed {config.seed}", config.total_steps)
    if not config.quiet:
        callbacks.append(display)
    try:
        agent.learn(config.total_steps, CallbackList(callbacks), log_interval=config.log_interval)
        agent.dump_logs()
    except ValueError as error:  # past the checks above this is a fault of ours, not of the user's: keep the traceback
        raise RuntimeError("training failed") from error
    finally:
        display.stop()
        logger.close()
        env.close()

    agent.save(folder / MODEL_FILE)
    evaluation = evaluate(agent, names, config.final_episodes, FINAL_SEED)
    _write_json(folder / EVALUATION_FILE, evaluation.as_json())
    if not config.quiet:
        console = Console()
        console.print(
            evaluation.table(f"{config.run_name}, seed {config.seed}: {config.final_episodes} greedy episodes")
        )
        console.print(f"results in {folder}")
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

    def _on_step(self) -> bool:
        for column, done in enumerate(self.locals["dones"]):
            self._finished[column // self._envs_per_task] += bool(done)
        return min(self._finished) < self._episodes


def _prepare(folder: Path) -> None:
    """Make the run's folder, without what an earlier run left in it.

    Raises:
        UsageError: a file is in the way.
    """
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise UsageError(f"'{parent}' is a file; results need a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (EVALUATION_FILE, MODEL_FILE, METRICS_FILE, CONFIG_FILE):
        (folder / name).unlink(missing_ok=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write in one step, so that a reader never sees half a file."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(draft, path)
