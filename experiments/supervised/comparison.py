"""The comparison of balancers: training with the same seeds for each of them, and tests of their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from experiments.analysis.markdown import cell, count, table
from experiments.analysis.significance import Comparison
from experiments.program.device import find_device
from experiments.program.flags import UsageError, parse_seeds
from experiments.program.locking import locked
from experiments.program.outputs import check_file, write_json
from experiments.program.stopping import StoppedError, StopSignal, StopSignals, disk_errors
from experiments.program.terminal import progress
from experiments.supervised import figures
from experiments.supervised.config import CompareConfig
from experiments.supervised.data import load_data
from experiments.supervised.loading import load_settings
from experiments.supervised.output import describe
from experiments.supervised.results import Results
from experiments.supervised.settings import BASELINE, LARGEST_SEED, MEAN, Settings
from experiments.supervised.training import Epoch, Learner, find_balancer, num_held_out
from mtrl.files import replacing

ALPHA = 0.05
FORM = "{:.3f}"  # the format of a score
QUICK_SEEDS = 3  # the largest number of seeds with --quick
RESULTS_FILE = "comparison.json"
TABLE_FILE = "table.md"
FIGURE_FILE = "comparison.png"


def compare_balancers(config: CompareConfig) -> Results:
    """Train with every balancer and seed, print the table, and write table.md, comparison.json and comparison.png.

    Raises:
        UsageError: a setting is wrong, or the folder holds a comparison that must not be replaced. No file has changed.
        StoppedError: a signal, a number that is not finite or a disk ended the comparison.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes
    settings = load_settings(config, "digits")
    seeds = parse_seeds(config.seeds)
    if config.quick:
        seeds = seeds[:QUICK_SEEDS]
    if max(seeds) > LARGEST_SEED:
        raise UsageError(f"seeds: {max(seeds)} is too large; {LARGEST_SEED} is the largest")
    if not config.balancers:
        raise UsageError("balancers: there are none; give some, such as equal pcgrad")
    for name in config.balancers:
        find_balancer(settings, name)
    find_device(config.device)
    folder = config.output_dir or Path("results/analysis") / f"supervised_{settings.data.source}"
    _refuse_existing(config, folder)
    for name in (TABLE_FILE, FIGURE_FILE, RESULTS_FILE):
        check_file(folder / name)
    load_data(settings, seeds[0])  # this checks that the data can be loaded
    with disk_errors(folder, UsageError):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, otherwise="wait for it, or give another --output-dir"):
        _refuse_existing(config, folder)  # another process may have finished since the first look
        try:
            with StopSignals() as signals:
                balancers = list(dict.fromkeys(config.balancers))
                results = run(settings, balancers, seeds, config.device, config.quiet, signals)
        except StopSignal as stop:
            raise StoppedError(f"stopped by {stop}; nothing was written", stop.status) from None
        except FloatingPointError as error:
            raise StoppedError(f"{error}; a lower learning_rate may help") from error
        text = markdown(results, settings)
        with disk_errors(folder, StoppedError):
            with replacing(folder / TABLE_FILE) as file:
                file.write(f"{text}\n".encode())
            figures.comparison(results, folder / FIGURE_FILE)
            write_json(folder / RESULTS_FILE, {**describe(settings), **results.as_json()})
    if not config.quiet:
        print(f"{text}\n")
    print(f"{TABLE_FILE}, {FIGURE_FILE} and {RESULTS_FILE} are in {folder}")
    return results


def _refuse_existing(config: CompareConfig, folder: Path) -> None:
    if (folder / RESULTS_FILE).exists() and config.existing != "replace":
        another = "give --existing replace to replace it, or another --output-dir"
        raise UsageError(f"'{folder}' holds a comparison; {another}")


def run(
    settings: Settings,
    balancers: Sequence[str],
    seeds: Sequence[int],
    device: str = "cpu",
    quiet: bool = True,
    signals: StopSignals | None = None,
) -> Results:
    """Train with every balancer and every seed on the data that the settings describe.

    Raises:
        FloatingPointError: a number is not finite; the message names the balancer and the seed.
        StopSignal: a signal arrived.
    """
    scores: dict[str, dict[int, list[float]]] = {name: {} for name in balancers}
    curves: dict[str, list[list[float]]] = {name: [] for name in balancers}
    with progress(quiet) as bar:
        row = bar.add_task("", total=len(seeds) * len(balancers))
        for seed in seeds:
            data = load_data(settings, seed)
            for name in balancers:
                bar.update(row, description=f"{name}, seed {seed}")
                learner = Learner(settings, seed, name, device, data)
                epochs: list[Epoch] = []
                for _ in range(settings.training.epochs):
                    try:
                        epochs.append(learner.epoch())
                    except FloatingPointError as error:
                        raise FloatingPointError(f"{name}, seed {seed}: {error}") from error
                    if signals is not None:
                        signals.answer()
                scores[name][seed] = [score.score for score in epochs[-1].scores.values()]
                curves[name].append([epoch.mean_score for epoch in epochs])
                bar.advance(row)
    tasks = tuple(task.name for task in settings.model.tasks)
    baseline = BASELINE if BASELINE in balancers else balancers[0]
    return Results(tasks, baseline, scores, curves)


def markdown(results: Results, settings: Settings) -> str:
    """The scores, their differences from the baseline, and the conclusion, as Markdown."""
    columns = results.columns
    metrics = " or ".join(dict.fromkeys(task.metric for task in settings.model.tasks))
    several = len(results.seeds) > 1
    intervals = " with 95 % intervals" if several else ""
    parts = [
        f"Validation {metrics} after {settings.training.epochs} epochs on {settings.data.num_train} samples of "
        f"{settings.data.source}: mean over {count(len(results.seeds), 'seed')}{intervals}.",
        table(
            ["balancer", *columns],
            ([name, *(cell(estimate, FORM) for estimate in results.estimates(name))] for name in results.balancers),
        ),
    ]
    for name in results.balancers:
        if held_out := num_held_out(settings, find_balancer(settings, name)):
            parts.append(f"{name} trains on {held_out} samples fewer: they are its guidance set.")
    differences = results.differences()
    others = [name for name in results.balancers if name != results.baseline]
    if others and several:
        parts += [
            f"Difference from {results.baseline}, paired by seed; p is Holm's, adjusted within each column for "
            f"{count(len(others), 'balancer')}.",
            table(
                ["balancer", *columns],
                ([name, *(_difference(differences[column][name]) for column in columns)] for name in others),
            ),
        ]
    parts += [verdict(results.baseline, differences)] if others else []
    return "\n\n".join(parts)


def verdict(baseline: str, differences: Mapping[str, Mapping[str, Comparison]]) -> str:
    """The conclusion in sentences: which balancers differ from the baseline, and how large a difference shows."""
    found: dict[str, list[str]] = {}
    detectable = []
    for column, compared in differences.items():
        for name, comparison in compared.items():
            if comparison.p_holm is None:
                return "One seed: nothing can be said of which balancer is better."
            if comparison.p_holm < ALPHA:
                kind = "better" if comparison.difference.value > 0 else "worse"
                found.setdefault(name, []).append(f"{kind} in {column} ({comparison.difference.value:+.3f})")
            if column == MEAN and comparison.detectable is not None:
                detectable.append(comparison.detectable)
    told = [f"{name} is {', '.join(where)}" for name, where in found.items()]
    nothing = "nothing else is told apart from it" if told else "no balancer is told apart from it in any column"
    return (
        f"Against {baseline}, at p < {ALPHA}: {'; '.join([*told, nothing])}. Without Holm's correction, one test "
        f"finds a true difference in the mean of {_span(detectable)} with probability 0.8; smaller ones may be there."
    )


def _difference(comparison: Comparison) -> str:
    p = comparison.p_holm or 0.0
    return f"{cell(comparison.difference, '{:+.3f}')} p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}, depending on the balancer,"
