"""Runs one training from settings to results."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from experiments.analysis.runs import CONFIG_FILE, EVALUATION_FILE, METRICS_FILE, write_json
from experiments.program.flags import UsageError
from experiments.program.progress import progress
from experiments.program.stopping import StoppedError, StopSignal, StopSignals, disk_errors
from experiments.supervised import figures
from experiments.supervised.config import TrainConfig
from experiments.supervised.loading import load_settings
from experiments.supervised.output import describe, log_to
from experiments.supervised.settings import Settings
from experiments.supervised.training import Epoch, Learner
from experiments.training.checkpoints import locked

BEST_FILE = "best.zip"
LAST_FILE = "last.zip"
CURVES_FILE = "curves.png"
FILES = (EVALUATION_FILE, CONFIG_FILE, METRICS_FILE, BEST_FILE, LAST_FILE, CURVES_FILE)


def train_model(config: TrainConfig) -> dict[str, Any]:
    """Train one model and leave its files in `<results-dir>/<data>_<balancer>/seed_<k>/`.

    They are config.json, metrics.jsonl (a line per epoch), best.zip (the model of the highest mean score), last.zip,
    curves.png, the log file, and evaluation.json. The latter is written last: a folder that has it is a finished run.
    An unfinished one is begun anew.

    Returns:
        What evaluation.json holds: the last model's scores.

    Raises:
        UsageError: something asked for cannot be, or the folder holds a finished run or is in use. Nothing has changed.
        StoppedError: a signal, a number that is not finite or a disk ended the run.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes
    settings = load_settings(config, "synthetic", os.environ)
    seed, name = settings.data.random_seed, run_name(settings)
    folder = config.results_dir / name / f"seed_{seed}"
    _refuse_finished(folder, config.overwrite)
    learner = Learner(settings, seed, device=config.device)
    with disk_errors(folder, UsageError):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), StopSignals() as signals:
        _refuse_finished(folder, config.overwrite)  # another process may have finished it by now
        with disk_errors(folder, StoppedError):
            for file in FILES:
                (folder / file).unlink(missing_ok=True)
            write_json(folder / CONFIG_FILE, {"run": name, "seed": seed, **describe(settings)})
            try:
                epochs = _learn(learner, folder, settings, signals, f"{name}, seed {seed}", config.quiet)
            except StopSignal as stop:
                raise StoppedError(f"stopped by {stop}; the same command starts anew", stop.status) from None
            except FloatingPointError as error:
                raise StoppedError(f"{error}; a lower learning_rate may help") from error
            figures.curves(epochs, settings.model.tasks, f"{name}, seed {seed}", folder / CURVES_FILE)
            evaluation = _evaluation(epochs)
            write_json(folder / EVALUATION_FILE, evaluation)
    if not config.quiet:
        console = Console()
        console.print(_table(epochs, f"{name}, seed {seed}: {settings.data.num_val} validation samples"))
        console.print(f"results in {folder}")
    return evaluation


def run_name(settings: Settings) -> str:
    """`<data>_<balancer>`."""
    return f"{settings.data.source}_{settings.training.balancer.replace(':', '_').lower()}"


def _learn(
    learner: Learner, folder: Path, settings: Settings, signals: StopSignals, title: str, quiet: bool
) -> list[Epoch]:
    """Train, with a line of metrics and one of log per epoch; save the last model, and the best on the way."""
    log_path = None if settings.logging.file is None else folder / settings.logging.file
    epochs: list[Epoch] = []
    best = float("-inf")
    with (
        log_to(log_path, settings.logging.level) as log,
        open(folder / METRICS_FILE, "w", encoding="utf-8") as metrics,
        progress(quiet) as bar,
    ):
        log.info("%s: %d epochs on %s", title, settings.training.epochs, learner.device)
        log.debug("settings: %s", json.dumps(settings.as_json()))
        row = bar.add_task(title, total=settings.training.epochs)
        for _ in range(settings.training.epochs):
            try:
                epoch = learner.epoch()
            except FloatingPointError as error:
                log.error("epoch %d: %s", len(epochs) + 1, error)
                raise
            epochs.append(epoch)
            metrics.write(f"{json.dumps(epoch.as_metrics())}\n")
            metrics.flush()
            scores = ", ".join(f"{task} {one.metric} {one.score:.4f}" for task, one in epoch.scores.items())
            log.info("epoch %d: loss %.4f, %s", epoch.number, sum(epoch.train_loss.values()), scores)
            if epoch.mean_score > best:
                best = epoch.mean_score
                learner.save(folder / BEST_FILE)
                log.debug("epoch %d: the best so far, saved to %s", epoch.number, BEST_FILE)
            bar.advance(row)
            signals.answer()
        learner.save(folder / LAST_FILE)
        log.info("finished; the last model is in %s, the best in %s", LAST_FILE, BEST_FILE)
    return epochs


def _evaluation(epochs: list[Epoch]) -> dict[str, Any]:
    """The last model's scores, which count, and when the mean score was highest, which is chosen after the fact."""
    last, best = epochs[-1], max(epochs, key=lambda epoch: epoch.mean_score)
    worst = min(last.scores, key=lambda task: last.scores[task].score)
    return {
        "epoch": last.number,
        "tasks": {task: asdict(score) for task, score in last.scores.items()},
        "mean": last.mean_score,
        "worst_task": {"name": worst, "score": last.scores[worst].score},
        "best": {"epoch": best.number, "mean": best.mean_score},
    }


def _table(epochs: list[Epoch], title: str) -> Table:
    last, best = epochs[-1], max(epochs, key=lambda epoch: epoch.mean_score)
    table = Table("task", "metric", "last", f"best (epoch {best.number})", "loss", title=title)
    for task, score in last.scores.items():
        table.add_row(task, score.metric, f"{score.score:.3f}", f"{best.scores[task].score:.3f}", f"{score.loss:.3f}")
    table.add_section()
    table.add_row("mean", "", f"{last.mean_score:.3f}", f"{best.mean_score:.3f}")
    return table


def _refuse_finished(folder: Path, overwrite: bool) -> None:
    if (folder / EVALUATION_FILE).exists() and not overwrite:
        raise UsageError(f"'{folder}' holds a finished run; give --overwrite to replace it, or another --seed")
