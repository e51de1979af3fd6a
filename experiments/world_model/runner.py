"""Runs one training of the world model from settings to results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from envs import BASE_ID, get_tasks
from experiments.analysis.plots import recording as plots
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
from experiments.program.progress import progress
from experiments.program.stopping import StoppedError, StopSignal, StopSignals, disk_errors
from experiments.program.versions import versions
from experiments.training.checkpoints import locked
from experiments.world_model import figures
from experiments.world_model.checkpoints import Checkpoints, find_run
from experiments.world_model.config import WorldModelConfig
from experiments.world_model.evaluation import Windows, evaluate, held_out_windows, look
from experiments.world_model.recording import HELD_OUT_EVERY, Video, VideoSettings, load_or_record
from experiments.world_model.training import Trainer, find_balancer
from mtrl import NonFiniteGradientError, Recorder
from mtrl.losses import TASKS, loss_metrics
from mtrl.recorder import read_recording

RECORDINGS = "recordings"
STEPS_PER_SECOND = 50  # of the environments
PICTURES = ("frames.png", "roll_outs.png", "attention.png", "errors.png")
FILMS = ("reconstructions.mp4", "roll_outs.mp4")


def train(config: WorldModelConfig) -> dict[str, Any]:
    """Record the video if need be, train, and leave all files in the run's folder.

    evaluation.json is written last: a folder that has it is a finished run. An unfinished run with the same settings is
    continued from its last checkpoint.

    Returns:
        What evaluation.json holds.

    Raises:
        UsageError: something asked for cannot be, or the folder holds a finished run or is in use. Nothing has changed.
        StoppedError: a signal, a number that is not finite or a disk ended the run; it says how to go on.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes
    config = config.shortened()
    find_balancer(config)
    _refuse_short_video(config)
    folder = config.run_dir
    _refuse_finished(folder, config.overwrite)
    with disk_errors(folder, UsageError):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), StopSignals() as signals:
        _refuse_finished(folder, config.overwrite)  # another process may have finished it by now
        saved = find_run(folder, config) if config.resume and not config.overwrite else None
        checkpoints = Checkpoints(folder, config)
        try:
            with disk_errors(folder, StoppedError):
                video = _video(config, signals)
                trainer = Trainer(config, video)
                windows = held_out_windows(video, config.context, config.horizon, config.eval_windows)
                _clear(folder, continued=saved is not None)
                write_json(folder / CONFIG_FILE, describe(config))
                if saved is not None:
                    checkpoints.restore(trainer, saved)
                _learn(config, trainer, windows, checkpoints, signals)
                signals.answer_at_once()
                evaluation = _finish(config, trainer, windows, checkpoints.seconds)
                checkpoints.remove()
        except StopSignal as stop:
            raise StoppedError(f"stopped by {stop}; {checkpoints.outlook}", stop.status) from None
        except NonFiniteGradientError as error:
            raise StoppedError(f"{error}; a lower --learning-rate may help") from error
    if not config.quiet:
        console = Console()
        console.print(_table(evaluation, f"{config.run_name}, seed {config.seed}: squared errors on held-out video"))
        console.print(f"results in {folder}")
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
    """The video, recorded if it is not there."""
    settings = VideoSettings(config.tasks, config.frames, config.frame_skip, config.recording_seed)
    with progress(config.quiet) as bar:
        row = bar.add_task("recording", total=config.frames, visible=False)

        def advance(frames: int) -> None:
            bar.update(row, advance=frames, visible=True)
            signals.answer()

        return load_or_record(config.results_dir / RECORDINGS, settings, config.window, advance)


def _learn(
    config: WorldModelConfig, trainer: Trainer, windows: Windows, checkpoints: Checkpoints, signals: StopSignals
) -> None:
    """Train to the end, with lines of metrics and checkpoints on the way."""
    metrics = config.run_dir / METRICS_FILE
    recorder = Recorder(metrics, trainer.balancer, TASKS, every=config.log_interval, step=trainer.steps)
    with recorder, progress(config.quiet) as bar:
        row = bar.add_task(f"{config.run_name}, seed {config.seed}", total=config.steps, completed=trainer.steps)
        while trainer.steps < config.steps:
            losses = trainer.update()
            if trainer.steps == 1 or trainer.steps % config.log_interval == 0:
                recorder.record({f"loss/{name}": value for name, value in loss_metrics(losses).items()})
            if trainer.steps % config.eval_interval == 0 or trainer.steps == config.steps:
                errors = evaluate(trainer.model, windows, config.tasks)
                values = {f"eval/{name}": value for name, value in errors["all_pixels"].items()}
                values |= {f"eval/changed_{name}": value for name, value in errors["changed_pixels"].items()}
                recorder.record({**values, "time/cpu_s": checkpoints.seconds})
            bar.update(row, completed=trainer.steps)
            if signals.received:
                checkpoints.save(trainer)
                signals.answer()
            checkpoints.save_if_due(trainer)


def _finish(config: WorldModelConfig, trainer: Trainer, windows: Windows, seconds: float) -> dict[str, Any]:
    """Save the model, draw, evaluate."""
    folder, names = config.run_dir, config.tasks
    trainer.save(folder / MODEL_FILE)
    evaluation = {"steps": trainer.steps, **evaluate(trainer.model, windows, names), "cpu_seconds": seconds}
    seen = look(trainer.model, windows)
    metrics = plots.Recording(folder / METRICS_FILE, read_recording(folder / METRICS_FILE))
    for name in plots.FIGURES:
        plots.draw(name, metrics, folder / f"{name}.png")
    figures.frames_figure(windows, seen, names, folder / "frames.png")
    figures.roll_outs_figure(windows, seen, names, folder / "roll_outs.png")
    figures.attention_figure(windows, seen, folder / "attention.png")
    figures.errors_figure(metrics.curves, evaluation, folder / "errors.png")
    fps = max(1, round(STEPS_PER_SECOND / config.frame_skip / 2))  # at half its speed one sees more
    figures.reconstructions_film(windows, seen, names, fps, folder / "reconstructions.mp4")
    figures.roll_outs_film(windows, seen, names, fps, folder / "roll_outs.mp4")
    write_json(folder / EVALUATION_FILE, evaluation)
    return evaluation


def _clear(folder: Path, continued: bool) -> None:
    """Delete what an earlier run left in `folder`, save what it needs to be continued."""
    files = [EVALUATION_FILE, MODEL_FILE, CONFIG_FILE, *PICTURES, *FILMS, *(f"{name}.png" for name in plots.FIGURES)]
    if not continued:
        files += [METRICS_FILE, CHECKPOINT_FILE, PREVIOUS_FILE]
    for path in (*(folder / name for name in files), *folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)


def _refuse_finished(folder: Path, overwrite: bool) -> None:
    if (folder / EVALUATION_FILE).exists() and not overwrite:
        raise UsageError(f"'{folder}' holds a finished run; give --overwrite to replace it, or another --seed")


def _refuse_short_video(config: WorldModelConfig) -> None:
    """Before anything is recorded: some episodes must be held out, a fifth of each task's, and be long enough."""
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
