"""Runs one training from settings to results. The `train` program of every method calls `train`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter, Logger

from agents import MultiTaskAlgorithm, NonFiniteError
from experiments.program.flags import UsageError
from experiments.program.run_files import METRICS_FILE
from experiments.program.run_folder import MODEL_FILE, RunFolder
from experiments.program.stopping import StoppedError
from experiments.program.tasks import describe_tasks, get_tasks, packages_of
from experiments.program.terminal import console, show_table
from experiments.program.versions import versions
from experiments.program.weights_and_biases import WANDB_FOLDER, check_wandb
from experiments.training.callbacks import CurveEvaluation, StopAfterEpisodes
from experiments.training.checkpoints import KIND, Checkpoints, MetricsFile
from experiments.training.config import TrainConfig
from experiments.training.display import TrainingDisplay
from experiments.training.evaluation import FINAL_SEED, Evaluation, evaluate
from experiments.training.make_agent import make_agent
from experiments.training.tracking import TENSORBOARD_FOLDER, Episodes, Views
from mtrl.rl.tasks import AnyTask
from mtrl.rl.vec_env import ColumnError


def train(config: TrainConfig) -> Evaluation:
    """Train one agent, evaluate it, and leave config.json, metrics.jsonl, model.zip and evaluation.json in its folder.

    evaluation.json is written last: a folder that has it holds a finished run. An unfinished run with the same settings
    is continued from its last checkpoint; see `RunFolder`. The folders `tensorboard/` and `wandb/` hold views of the
    metrics, where the settings ask for them.

    Raises:
        ValueError: a setting is out of range.
        UsageError: the folder holds a finished run or one with other settings, is in use, or cannot be written to.
        StoppedError: a signal, a failing environment or a disk ended the run; the message says how to go on.
    """
    tasks = get_tasks(config.tasks)
    description = describe(config)
    run = RunFolder(
        config.run_dir,
        description,
        kind=KIND,
        existing=config.existing,
        free=config.free_settings,
        interval=config.checkpoint_interval,
    )
    check_wandb(config.wandb)
    with make_agent(config) as (agent, env), run, Views() as views:
        if run.saved is not None and not config.quiet:
            print(f"{config.run_name}, seed {config.seed}: continuing from '{run.saved.path}'")
        run.begin(records=(TENSORBOARD_FOLDER, WANDB_FOLDER))
        metrics = MetricsFile(run.file(METRICS_FILE))
        views.open(config, description, None if run.saved is None else run.saved.state.get("steps"))
        episodes = Episodes(agent.task_names, agent.column_counts)
        parts = [episodes, *_parts(config, tasks, agent.column_counts)]
        checkpoints = Checkpoints(run, env, metrics, parts, views.settle)
        _learn(config, agent, [metrics, views], checkpoints, parts)
        run.signals.answer_at_once()
        agent.save(run.file(MODEL_FILE))
        if not config.quiet:
            print(f"playing {config.final_episodes} greedy episodes of each task ...", flush=True)
        evaluation = evaluate(agent, tasks, config.final_episodes, FINAL_SEED)
        results = {**evaluation.as_json(), "parameters": trainable_parameters(agent)}
        run.finish(results)
        views.finish(results, episodes)
    if not config.quiet:
        title = f"{config.run_name}, seed {config.seed}: {config.final_episodes} greedy episodes"
        show_table(evaluation.table(title), console())
    print(f"results in {config.run_dir}; {checkpoints.cost}")
    return evaluation


def describe(config: TrainConfig) -> dict[str, Any]:
    """The contents of config.json: what runs, with which settings, on which versions of which packages."""
    tasks = get_tasks(config.tasks)
    packages = ("mtrl", "gymnasium", "box2d", "stable-baselines3", "torch", "numpy", *packages_of(tasks))
    return {
        "run": config.run_name,
        "method": config.run_method,
        "agent": config.agent,
        "balancer": config.balancer_name,
        "settings": config.record,
        **describe_tasks(tasks),
        "versions": versions(*packages),
    }


def trainable_parameters(agent: MultiTaskAlgorithm) -> int:
    """The number of parameters that training changes: those of the Q-network, or of the actor and the critics."""
    return sum(part.numel() for part in agent.policy.parameters() if part.requires_grad)


def _parts(
    config: TrainConfig, tasks: Sequence[AnyTask], columns: Sequence[int]
) -> list[CurveEvaluation | StopAfterEpisodes]:
    """The callbacks that the settings ask for."""
    parts: list[CurveEvaluation | StopAfterEpisodes] = []
    if config.eval_interval:
        parts.append(CurveEvaluation(tasks, config.eval_interval, config.eval_episodes))
    if config.episodes_per_task is not None:
        parts.append(StopAfterEpisodes(config.episodes_per_task, columns))
    return parts


def _learn(
    config: TrainConfig,
    agent: MultiTaskAlgorithm,
    outputs: list[KVWriter],
    checkpoints: Checkpoints,
    parts: Sequence[BaseCallback],
) -> None:
    """Train with all callbacks, and write the metrics to all `outputs`.

    Raises:
        StoppedError: an environment failed, in which case the last whole step is saved; or a number was not finite, in
            which case what happened since the last checkpoint is given up.
    """
    logger = Logger(str(config.run_dir), outputs)
    agent.set_logger(logger)
    display = TrainingDisplay(f"{config.run_name}, seed {config.seed}", config.total_steps)
    callbacks = [checkpoints, *parts] if config.quiet else [checkpoints, *parts, display]
    try:
        agent.learn(config.total_steps, CallbackList(callbacks), log_interval=config.log_interval)
        agent.dump_logs()
        if not all(bool(weight.isfinite().all()) for weight in agent.policy.parameters()):
            raise NonFiniteError("a weight is not finite after the last update")
    except ColumnError as error:
        checkpoints.save()
        raise StoppedError(f"{error}; {checkpoints.run.outlook}") from error
    except NonFiniteError as error:
        raise StoppedError(f"{error}; {checkpoints.run.kept}; {checkpoints.run.outlook}") from error
    except UsageError:
        raise
    except ValueError as error:  # the user's mistakes have been found before: this is a bug and keeps its traceback
        raise RuntimeError("training failed") from error
    finally:
        display.stop()
        logger.close()
