"""Runs one training of the world model from settings to results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.progress import Progress
from rich.table import Table

from envs import BASE_ID, get_tasks
from experiments.analysis.plots import recording as plots
from experiments.program.flags import UsageError
from experiments.program.run_files import METRICS_FILE
from experiments.program.run_folder import MODEL_FILE, RunFolder
from experiments.program.stopping import StoppedError, StopSignals
from experiments.program.terminal import console, progress, show_table
from experiments.program.versions import versions
from experiments.world_model import figures
from experiments.world_model.checkpoints import FREE_SETTINGS, KIND, Checkpoints
from experiments.world_model.config import WorldModelConfig
from experiments.world_model.evaluation import Windows, evaluate, judge, look, windows_of
from experiments.world_model.recording import HELD_OUT_EVERY, RECORDINGS, Video, VideoSettings, load_with_progress
from experiments.world_model.saving import Trained
from experiments.world_model.training import Trainer, find_balancer
from mtrl import Recorder
from mtrl.losses import TASKS, loss_metrics

STEPS_PER_SECOND = 50  # of the environments
PICTURES = ("frames.png", "roll_outs.png", "attention.png", "errors.png")
FILMS = ("reconstructions.mp4", "roll_outs.mp4")


def train(config: WorldModelConfig) -> dict[str, Any]:
    """Record the video if it is not there, train, and leave all files in the folder of the run.

    evaluation.json is written last: a folder that has it holds a finished run. An unfinished run with the same settings
    is continued from its last checkpoint; see `RunFolder`.

    Returns:
        The contents of evaluation.json.

    Raises:
        UsageError: a setting is wrong, or the folder holds a finished run or one with other settings, is in use, or
            cannot be written to.
        StoppedError: a signal, a number that is not finite or a disk ended the run; the message says how to go on.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes
    config = config.shortened()
    find_balancer(config)
    _refuse_short_video(config)
    run = RunFolder(
        config.run_dir,
        describe(config),
        kind=KIND,
        existing=config.existing,
        free=FREE_SETTINGS,
        interval=config.checkpoint_interval,
        unit="update",
    )
    with run:
        video = _video(config, run.signals)
        trainer = Trainer(config, video)
        windows = windows_of(video, config.context, config.horizon, config.eval_windows)
        run.begin(results=(*PICTURES, *FILMS, *(f"{name}.png" for name in plots.FIGURES)))
        checkpoints = Checkpoints(run, trainer)
        try:
            _learn(config, trainer, windows, checkpoints, run)
            run.signals.answer_at_once()
            evaluation = _evaluate(config, trainer, windows, checkpoints.seconds, run)
        except FloatingPointError as error:
            raise StoppedError(f"{error}; a lower --learning-rate may help; {run.kept}") from error
        run.finish(evaluation)
    if not config.quiet:
        title = f"{config.run_name}, seed {config.seed}: squared errors on held-out video"
        show_table(_table(evaluation, title), console())
    print(f"results in {config.run_dir}")
    return evaluation


def describe(config: WorldModelConfig) -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "run": config.run_name,
        "objectives": list(TASKS),
        "settings": config.settings,
        "environments": {task.name: task.env_id for task in get_tasks(config.tasks)},
        "base_environment": BASE_ID,
        "versions": versions("mtrl", "gymnasium", "box2d", "torch", "numpy"),
    }


def _video(config: WorldModelConfig, signals: StopSignals) -> Video:
    """The video of the settings, which is recorded if it is not there yet."""
    settings = VideoSettings.of(config.tasks, config.frames, config.frame_skip, config.window, config.recording_seed)
    return load_with_progress(config.results_dir / RECORDINGS, settings, config.quiet, signals.answer)


def _learn(
    config: WorldModelConfig, trainer: Trainer, windows: Windows, checkpoints: Checkpoints, run: RunFolder
) -> None:
    """Train to the end, and write metrics and checkpoints on the way."""
    recorder = Recorder(run.file(METRICS_FILE), trainer.balancer, TASKS, every=config.log_interval, step=trainer.steps)
    with recorder, progress(config.quiet) as bar:
        row = bar.add_task(f"{config.run_name}, seed {config.seed}", total=config.steps, completed=trainer.steps)
        while trainer.steps < config.steps:
            heard = trainer.hearing.heard
            losses = trainer.update()
            if trainer.hearing.heard != heard:
                _tell(trainer, bar)
            if trainer.steps == 1 or trainer.steps % config.log_interval == 0:
                values = {f"loss/{name}": value for name, value in loss_metrics(losses).items()}
                recorder.record({**values, "discriminator/accuracy": trainer.hearing.accuracy})
            if trainer.steps % config.eval_interval == 0 or trainer.steps == config.steps:
                errors = evaluate(trainer.model, windows, config.tasks)
                values = {f"eval/{name}": value for name, value in errors["all_pixels"].items()}
                values |= {f"eval/changed_{name}": value for name, value in errors["changed_pixels"].items()}
                recorder.record({**values, "time/cpu_s": checkpoints.seconds})
            bar.update(row, completed=trainer.steps)
            checkpoints.save_if_due()


def _tell(trainer: Trainer, bar: Progress) -> None:
    """Say that the adversarial objective has joined the balance or left it."""
    hearing = trainer.hearing
    what = "joins" if hearing.heard else "leaves"
    right = f"the discriminator is right in {hearing.accuracy:.0%} of the pairs"
    bar.console.print(f"update {trainer.steps}: the adversarial objective {what} the balance, as {right}")


def _evaluate(
    config: WorldModelConfig, trainer: Trainer, windows: Windows, seconds: float, run: RunFolder
) -> dict[str, Any]:
    """Save the model, evaluate it, and draw the pictures and films."""
    names = config.tasks
    trainer.save(run.file(MODEL_FILE))
    trained = Trained(trainer.model, trainer.discriminator)
    evaluation = {"steps": trainer.steps, **evaluate(trainer.model, windows, names)}
    evaluation |= {"discriminator": judge(trained, windows), "cpu_seconds": seconds}
    seen = look(trainer.model, windows)
    metrics = plots.Recording.read(run.file(METRICS_FILE))
    for name in plots.FIGURES:
        plots.draw(name, metrics, run.file(f"{name}.png"))
    figures.frames_figure(windows, seen, names, run.file("frames.png"))
    figures.roll_outs_figure(windows, seen, names, run.file("roll_outs.png"))
    figures.attention_figure(windows, seen, run.file("attention.png"))
    figures.errors_figure(metrics.curves, evaluation, run.file("errors.png"))
    fps = max(1, round(STEPS_PER_SECOND / config.frame_skip / 2))  # at half its speed more can be seen
    figures.reconstructions_film(windows, seen, names, fps, run.file("reconstructions.mp4"))
    figures.roll_outs_film(windows, seen, names, fps, run.file("roll_outs.mp4"))
    return evaluation


def _refuse_short_video(config: WorldModelConfig) -> None:
    """Check before anything is recorded that the video is long enough.

    A fifth of the episodes of each task is held out, and a held-out episode must hold a whole window.

    Raises:
        UsageError: the video is too short.
    """
    tasks = get_tasks(config.tasks)
    longest = max(-(-task.time_limit // config.frame_skip) for task in tasks)
    if config.window > longest:
        together = f"context and horizon are {config.window} frames together"
        raise UsageError(f"{together}; with frame_skip {config.frame_skip} no episode has more than {longest}")
    least = HELD_OUT_EVERY * config.window
    if config.frames < least * len(tasks):
        why = f"{least} for each task: {HELD_OUT_EVERY} episodes of context + horizon"
        raise UsageError(f"frames is {config.frames}; it must be at least {least * len(tasks)}, {why}")


def _table(evaluation: Mapping[str, Any], title: str) -> Table:
    table = Table("", "all pixels", "pixels that change", title=title)
    for name, error in evaluation["all_pixels"].items():
        changed = evaluation["changed_pixels"][name]
        table.add_row(name.replace("_", " "), f"{error:.5f}", f"{changed:.4f}")
    return table
