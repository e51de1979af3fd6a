"""Runs one supervised training from settings to results."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from experiments.program.run_files import METRICS_FILE
from experiments.program.run_folder import RunFolder
from experiments.program.stopping import StoppedError
from experiments.program.terminal import console, progress, show_table
from experiments.supervised import figures
from experiments.supervised.config import TrainConfig
from experiments.supervised.loading import load_settings
from experiments.supervised.output import describe, log_to
from experiments.supervised.settings import Settings
from experiments.supervised.training import Epoch, Learner
from mtrl.files import open_regular

BEST_FILE = "best.zip"
LAST_FILE = "last.zip"
CURVES_FILE = "curves.png"
RESULTS = (BEST_FILE, LAST_FILE, CURVES_FILE)
KIND = "supervised_training"


def train_model(config: TrainConfig) -> dict[str, Any]:
    """Train one model and leave its files in `<results-dir>/<data>_<balancer>/seed_<k>/`.

    The files are config.json, metrics.jsonl (one line per epoch), best.zip (the model of the highest mean score),
    last.zip, curves.png, the log file, and evaluation.json. evaluation.json is written last: a folder that has it holds
    a finished run. An unfinished run is begun anew.

    Returns:
        The contents of evaluation.json: the scores of the last model.

    Raises:
        UsageError: a setting is wrong, or the folder holds a finished run, is in use or cannot be written to.
        StoppedError: a signal, a number that is not finite or a disk ended the run.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes
    settings = load_settings(config, "synthetic", os.environ)
    seed, name = settings.data.random_seed, run_name(settings)
    title = f"{name}, seed {seed}"
    folder = config.results_dir / name / f"seed_{seed}"
    description = {"run": name, "seed": seed, **describe(settings)}
    run = RunFolder(folder, description, kind=KIND, existing=config.existing)
    learner = Learner(settings, seed, device=config.device)
    with run:
        run.begin(results=RESULTS)
        try:
            epochs = _learn(learner, run, settings, title, config.quiet)
        except FloatingPointError as error:
            raise StoppedError(f"{error}; a lower learning_rate may help") from error
        figures.curves(epochs, settings.model.tasks, title, run.file(CURVES_FILE))
        evaluation = _evaluation(epochs)
        run.finish(evaluation)
    if not config.quiet:
        show_table(_table(epochs, f"{title}: {settings.data.num_val} validation samples"), console())
    print(f"results in {folder}")
    return evaluation


def run_name(settings: Settings) -> str:
    """The name of the run: `<data>_<balancer>`."""
    return f"{settings.data.name}_{settings.training.balancer.replace(':', '_').lower()}"


def _learn(learner: Learner, run: RunFolder, settings: Settings, title: str, quiet: bool) -> list[Epoch]:
    """Train and save the best and the last model. Every epoch writes one line of metrics and one line of the log."""
    folder = run.path
    log_path = None if settings.logging.file is None else folder / settings.logging.file
    epochs: list[Epoch] = []
    best = float("-inf")
    with (
        log_to(log_path, settings.logging.level) as log,
        open_regular(run.file(METRICS_FILE), "w", encoding="utf-8") as metrics,
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
                learner.save(run.file(BEST_FILE))
                log.debug("epoch %d: the best so far, saved to %s", epoch.number, BEST_FILE)
            bar.advance(row)
            run.signals.answer()
        learner.save(run.file(LAST_FILE))
        log.info("finished; the last model is in %s, the best in %s", LAST_FILE, BEST_FILE)
    return epochs


def _evaluation(epochs: list[Epoch]) -> dict[str, Any]:
    """The contents of evaluation.json.

    The scores of the last model are the result. The epoch with the highest mean score is reported beside them; it is
    chosen after the fact.
    """
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
