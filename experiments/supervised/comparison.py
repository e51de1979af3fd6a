"""The comparison of balancers: training with the same seeds for each of them, and tests of their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from experiments.analysis.markdown import cell, count, number, plain, table
from experiments.analysis.significance import ALPHA, Comparison
from experiments.program.balancer_options import variant_from_word
from experiments.program.device import find_device
from experiments.program.flags import UsageError, parse_seeds
from experiments.program.locking import locked
from experiments.program.outputs import check_file, write_json
from experiments.program.stopping import StoppedError, StopSignal, StopSignals, disk_errors
from experiments.program.terminal import progress
from experiments.supervised import figures
from experiments.supervised.config import CompareConfig
from experiments.supervised.data import TaskData, load_data
from experiments.supervised.done import DONE_FILE, DoneTrainings, Training
from experiments.supervised.loading import load_settings
from experiments.supervised.output import describe
from experiments.supervised.results import Results
from experiments.supervised.settings import BASELINE, LARGEST_SEED, MEAN, Settings
from experiments.supervised.training import Epoch, Learner, find_balancer, num_held_out
from mtrl.files import replacing

FORM = "{:.3f}"  # the format of a score
QUICK_SEEDS = 3  # the largest number of seeds with --quick
RESULTS_FILE = "comparison.json"
TABLE_FILE = "table.md"
FIGURE_FILE = "comparison.png"
DIFFERENCES_FILE = "differences.png"


def compare_balancers(config: CompareConfig) -> Results:
    """Train with every balancer and seed, print the table, and write it with its figures and numbers.

    The files are table.md, comparison.png, differences.png (with at least two balancers and two seeds), and
    comparison.json, which is written last. Until then, unfinished.jsonl keeps every training that is done.

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
    words = find_words(config.balancers)
    for word in words.values():
        find_balancer(settings, word)
    find_device(config.device)
    folder = config.output_dir or Path("results/analysis") / f"supervised_{settings.data.name}"
    _refuse_existing(config, folder)
    for name in (TABLE_FILE, FIGURE_FILE, DIFFERENCES_FILE, RESULTS_FILE, DONE_FILE):
        check_file(folder / name)
    load_data(settings, seeds[0])  # this checks that the data can be loaded
    with disk_errors(folder, UsageError):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, otherwise="wait for it, or give another --output-dir"):
        _refuse_existing(config, folder)  # another process may have finished since the first look
        done = DoneTrainings(
            folder, _binding(settings, config.device), len(settings.model.tasks), config.existing != "continue"
        )
        try:
            with StopSignals() as signals:
                results = run(settings, words, seeds, config.device, config.quiet, signals, done)
        except (StopSignal, FloatingPointError) as stop:
            kept = f"{count(len(done), 'training')} kept, and the same command goes on"
            if isinstance(stop, StopSignal):
                raise StoppedError(f"stopped by {stop}; {kept}", stop.status) from None
            raise StoppedError(f"{stop}; a lower learning_rate may help") from stop
        text = markdown(results, settings)
        with disk_errors(folder, StoppedError):
            with replacing(folder / TABLE_FILE) as file:
                file.write(f"{text}\n".encode())
            figures.comparison(results, folder / FIGURE_FILE)
            if len(words) > 1 and len(seeds) > 1:
                figures.differences(results, settings.data.name, folder / DIFFERENCES_FILE)
            write_json(folder / RESULTS_FILE, {**describe(settings), **results.as_json()})
            (folder / DONE_FILE).unlink(missing_ok=True)
    if not config.quiet:
        print(f"{text}\n")
    print(f"{TABLE_FILE}, {RESULTS_FILE} and the figures are in {folder}")
    return results


def find_words(words: Sequence[str]) -> dict[str, str]:
    """For each label of the words `label=balancer,option=value,...`, its word.

    Raises:
        UsageError: there are no words, a word has not this form, or two words have one label.
    """
    if not words:
        raise UsageError("balancers: there are none; give some, such as equal pcgrad")
    found: dict[str, str] = {}
    for word in words:
        label = variant_from_word(word).label
        if found.setdefault(label, word) != word:
            raise UsageError(f"balancers: both {found[label]!r} and {word!r} have the label {label!r}; rename one")
    return found


def _refuse_existing(config: CompareConfig, folder: Path) -> None:
    if (folder / RESULTS_FILE).exists() and config.existing != "replace":
        if (folder / DONE_FILE).exists():  # the comparison was killed after its last file and before this was removed
            with suppress(UsageError), disk_errors(folder, UsageError), locked(folder):
                (folder / DONE_FILE).unlink(missing_ok=True)
        another = "give --existing replace to replace it, or another --output-dir"
        raise UsageError(f"'{folder}' holds a comparison; {another}")


def _binding(settings: Settings, device: str) -> dict[str, Any]:
    """What the trainings depend on, besides the balancer and the seed."""
    described = describe(settings)
    del described["settings"]["logging"], described["settings"]["data"]["random_seed"]
    return {**described, "device": device}


def run(
    settings: Settings,
    words: Mapping[str, str],
    seeds: Sequence[int],
    device: str = "cpu",
    quiet: bool = True,
    signals: StopSignals | None = None,
    done: DoneTrainings | None = None,
) -> Results:
    """Train with every balancer and every seed on the data that the settings describe.

    Args:
        settings: the settings, which must have been checked.
        words: for each label the balancer, as `find_balancer` takes it.
        seeds: the seeds.
        device: the device that trains the models.
        quiet: whether to show no progress bar.
        signals: may ask the comparison to stop. Default: nothing stops it.
        done: trainings that need not be repeated, and to which every new one is added. Default: there are none.

    Raises:
        FloatingPointError: a number is not finite; the message names the balancer and the seed.
        StopSignal: a signal arrived.
        StoppedError: a training cannot be added to those that are done.
    """
    found: dict[str, dict[int, Training]] = {label: {} for label in words}
    with progress(quiet) as bar:
        row = bar.add_task("", total=len(seeds) * len(words))
        for seed in seeds:
            data: TaskData | None = None
            for label, word in words.items():
                bar.update(row, description=f"{label}, seed {seed}")
                training = done.get(word, seed) if done else None
                if training is None:
                    data = load_data(settings, seed) if data is None else data
                    try:
                        training = _train(Learner(settings, seed, word, device, data), signals)
                    except FloatingPointError as error:
                        raise FloatingPointError(f"{label}, seed {seed}: {error}") from error
                    if done is not None:
                        done.add(word, seed, training)
                found[label][seed] = training
                bar.advance(row)
    tasks = tuple(task.name for task in settings.model.tasks)
    scores = {label: {seed: one.scores for seed, one in of.items()} for label, of in found.items()}
    curves = {label: [one.curve for one in of.values()] for label, of in found.items()}
    baseline = BASELINE if BASELINE in words else next(iter(words))
    return Results(tasks, baseline, scores, curves, dict(words))


def _train(learner: Learner, signals: StopSignals | None) -> Training:
    epochs: list[Epoch] = []
    for _ in range(learner.settings.training.epochs):
        epochs.append(learner.epoch())
        if signals is not None:
            signals.answer()
    return Training([score.score for score in epochs[-1].scores.values()], [epoch.mean_score for epoch in epochs])


def markdown(results: Results, settings: Settings) -> str:
    """The scores, their differences from the baseline, and the conclusion, as Markdown."""
    columns = results.columns
    metrics = " or ".join(dict.fromkeys(task.metric for task in settings.model.tasks))
    several = len(results.seeds) > 1
    intervals = " with 95 % intervals" if several else ""
    parts = [
        f"Validation {metrics} after {settings.training.epochs} epochs on {settings.data.num_train} samples of "
        f"{settings.data.name}: mean over {count(len(results.seeds), 'seed')}{intervals}.",
        table(
            ["balancer", *columns],
            (
                [plain(name), *(cell(estimate, FORM) for estimate in results.estimates(name))]
                for name in results.balancers
            ),
        ),
    ]
    for name in results.balancers:
        variant = variant_from_word(results.words[name])
        if variant.label != results.words[name]:
            options = [f"{option}={value}" for option, value in variant.options.items()]
            parts.append(f"{plain(name)} is `{' '.join([variant.balancer, *options])}`.")
        if held_out := num_held_out(settings, find_balancer(settings, results.words[name])):
            parts.append(f"{plain(name)} trains on {held_out} samples fewer: they are its guidance set.")
    differences = results.differences()
    others = [name for name in results.balancers if name != results.baseline]
    if others and several:
        parts += [
            f"Difference from {results.baseline}, paired by seed; p is Holm's, adjusted within each column for "
            f"{count(len(others), 'balancer')}. Detectable is the true difference in the mean that one test without "
            "Holm's correction finds with probability 0.8.",
            table(
                ["balancer", *columns, "detectable"],
                (
                    [
                        plain(name),
                        *(_difference(differences[column][name]) for column in columns),
                        number(differences[MEAN][name].detectable, FORM),
                    ]
                    for name in others
                ),
            ),
        ]
    parts += [verdict(results.baseline, differences)] if others else []
    return "\n\n".join(parts)


def verdict(baseline: str, differences: Mapping[str, Mapping[str, Comparison]]) -> str:
    """The conclusion in sentences: which balancers differ from the baseline."""
    found: dict[str, dict[str, list[str]]] = {}
    for column, compared in differences.items():
        for name, comparison in compared.items():
            if comparison.p_holm is None:
                return "One seed: nothing can be said of which balancer is better."
            if comparison.p_holm < ALPHA:
                kind = "better" if comparison.difference.value > 0 else "worse"
                where = f"{column} ({comparison.difference.value:+.3f})"
                found.setdefault(name, {}).setdefault(kind, []).append(where)
    told = [
        f"{plain(name)} is " + " and ".join(f"{kind} in {', '.join(where)}" for kind, where in kinds.items())
        for name, kinds in found.items()
    ]
    nothing = "nothing else is told apart from it" if told else "no balancer is told apart from it in any column"
    return (
        f"Against {plain(baseline)}, at p < {ALPHA}: {'; '.join([*told, nothing])}. Smaller differences may be there."
    )


def _difference(comparison: Comparison) -> str:
    p = comparison.p_holm or 0.0
    return f"{cell(comparison.difference, '{:+.3f}')} p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
