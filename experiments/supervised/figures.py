"""The figures of supervised runs and of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.analysis.intervals import means
from experiments.analysis.looks import COLOURS, OTHER_COLOURS
from experiments.analysis.plots.style import RC, grid_of_panels, task_style, title
from experiments.analysis.significance import ALPHA, Comparison
from experiments.program.figures import save
from experiments.supervised.results import Results
from experiments.supervised.settings import BASELINE, MEAN, TaskSettings
from experiments.supervised.training import Epoch

METRICS = {"accuracy": "accuracy", "r2": "$R^2$"}
TOLD = {True: "#0072B2", False: "#C0392B"}  # of balancers that are told apart, and better or worse
UNTOLD = "0.45"
COLUMNS = 3  # of panels in a comparison, whose letters would be too small at the width of a page with more
SMALLEST_COSINE = 0.2  # the axis of cosines reaches at least this far, so that small cosines look small


def curves(epochs: Sequence[Epoch], tasks: Sequence[TaskSettings], title: str, path: Path) -> None:
    """Plot the losses, the scores, the balancer's weights and the gradients' cosines of one run against epochs."""
    numbers = [epoch.number for epoch in epochs]
    mark = "." if len(epochs) == 1 else ""

    def draw(axes: Axes, values: list[float], **style: Any) -> None:
        axes.plot(numbers, values, linewidth=1.5, marker=mark, **style)

    with mpl.rc_context(RC):
        figure = Figure(figsize=(14, 3.4), layout="constrained")
        loss, score, weight, cosine = figure.subplots(1, 4)
        for index, name in enumerate(task.name for task in tasks):
            style = task_style(index)
            draw(loss, [epoch.scores[name].loss for epoch in epochs], **style)
            draw(loss, [epoch.train_loss[name] for epoch in epochs], **style, alpha=0.4)
            draw(score, [epoch.scores[name].score for epoch in epochs], **style, label=name)
            draw(weight, [epoch.weights[name] for epoch in epochs], **style)
        for index, pair in enumerate(epochs[0].cosines):
            colour = OTHER_COLOURS[index % len(OTHER_COLOURS)]
            draw(cosine, [epoch.cosines[pair] for epoch in epochs], color=colour, label=" and ".join(pair))
        metrics = " or ".join(dict.fromkeys(METRICS[task.metric] for task in tasks))
        for axes, label in (
            (loss, "loss: validation; pale: training"),
            (score, f"validation {metrics}"),
            (weight, "weight of a task's gradient"),
            (cosine, "cosine of two tasks' gradients"),
        ):
            axes.set_title(label)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        low, high = weight.get_ylim()
        weight.set_ylim(min(0.0, low), max(2.0, high))
        cosine.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
        limit = max(SMALLEST_COSINE, *np.abs(cosine.get_ylim()))
        cosine.set_ylim(-limit, limit)
        score.legend()
        if len(tasks) > 1:
            cosine.legend()
        figure.suptitle(title)
        save(figure, path)


def comparison(results: Results, path: Path) -> None:
    """Plot the learning curves of all balancers and their scores after the last epoch.

    The scores are shown for each task, for the mean over tasks, and for the worst task.
    """
    names, columns = results.balancers, results.columns
    with mpl.rc_context(RC):
        rows = -(-(1 + len(columns)) // COLUMNS)
        figure = Figure(figsize=(9.5, rows * max(2.4, 1.0 + 0.3 * len(names))), layout="constrained")
        curve, *panels = grid_of_panels(figure, 1 + len(columns), COLUMNS)
        for index, name in enumerate(names):
            mean, half = means(results.curves[name])
            numbers = np.arange(1, len(mean) + 1)
            colour = _colour(name, index)
            curve.plot(numbers, mean, color=colour, label=name, linewidth=1.5, marker="." if len(mean) == 1 else "")
            if half is not None:
                curve.fill_between(numbers, mean - half, mean + half, color=colour, alpha=0.13, linewidth=0)
        curve.set_title("mean over tasks, during training")
        curve.set_xlabel("epoch")
        curve.set_ylabel("validation score")
        curve.xaxis.set_major_locator(MaxNLocator(integer=True))
        curve.legend(loc="lower right")
        for place, (axes, column) in enumerate(zip(panels, columns, strict=True)):
            _estimates(axes, results, place)
            axes.set_title(f"{column} over tasks" if column == MEAN else column)
            first = place == 0 or (1 + place) % COLUMNS == 0  # in its row, or beside the curves
            axes.set_yticks(range(len(names)), names if first else [""] * len(names))
        seeds = len(results.seeds)
        note = "one seed: no intervals."
        if seeds > 1:
            note = f"mean over {seeds} seeds with 95 % intervals. Small dots: single seeds."
        note = f"First panel: during training. Others: after the last epoch; {note} Dotted line: {results.baseline}."
        title(figure, "Validation scores", note)
        save(figure, path)


def _estimates(axes: Axes, results: Results, place: int) -> None:
    """Draw one column of scores: for each balancer a dot per seed, and below the dots their mean and its interval."""
    for y, name in enumerate(results.balancers):
        dots, estimate = results.matrix(name)[:, place], results.estimates(name)[place]
        colour = _colour(name, y)
        if estimate.interval is not None:
            axes.plot(dots, np.full(len(dots), y - 0.25), ".", color=colour, alpha=0.5, markersize=4, markeredgewidth=0)
            axes.plot(estimate.interval, [y, y], color=colour, linewidth=1.4, solid_capstyle="butt")
        axes.plot([estimate.value], [y], "o", color=colour, markersize=5.5)
        if name == results.baseline:
            axes.axvline(estimate.value, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_ylim(len(results.balancers) - 0.4, -0.6)
    axes.grid(axis="y", color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(3))


def differences(results: Results, data: str, path: Path) -> None:
    """Plot the differences from the baseline, for the mean over tasks and for each task.

    The balancers stand in the order of their differences in the mean.
    """
    compared = results.differences()
    names = sorted(compared[MEAN], key=lambda name: -compared[MEAN][name].difference.value)
    columns = [MEAN, *results.tasks]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.5, 1.1 + 0.32 * len(names)), layout="constrained")
        panels = figure.subplots(1, len(columns), sharey=True, width_ratios=[2.0, *[1.0] * len(results.tasks)])
        for axes, column in zip(panels, columns, strict=True):
            _differences(axes, results, column, {name: compared[column][name] for name in names})
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        told = sum((one.p_holm or 0) < ALPHA for one in compared[MEAN].values())
        text = f"{data}: {told} of {len(names)} balancers told apart from {results.baseline} in the mean over tasks"
        note = (
            f"Validation score less that of {results.baseline}; right of 0 is better. Small dots: {len(results.seeds)} "
            "seeds. Large dots: means with 95 % intervals, filled if told apart (p < 0.05 after Holm's correction), "
            "open if not. Grey: what one test would overlook, as it finds such differences with probability below 0.8."
        )
        title(figure, text, note)
        save(figure, path)


def _differences(axes: Axes, results: Results, column: str, compared: Mapping[str, Comparison]) -> None:
    """Draw one column of differences: for each balancer the seeds, the interval, and what would be overlooked."""
    place = results.columns.index(column)
    baseline = results.matrix(results.baseline)[:, place]
    values = []
    for y, (name, one) in enumerate(compared.items()):
        seeds = results.matrix(name)[:, place] - baseline
        told = (one.p_holm or 0) < ALPHA
        colour = TOLD[one.difference.value > 0] if told else UNTOLD
        reach = one.detectable or 0.0
        axes.barh(y, 2 * reach, left=-reach, height=0.72, color="0.93", zorder=0)
        axes.plot(seeds, np.full(len(seeds), y - 0.26), ".", color=colour, alpha=0.5, markersize=4, markeredgewidth=0)
        interval = one.difference.interval or (one.difference.value,) * 2
        axes.plot(interval, [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        face = colour if told else "white"
        axes.plot([one.difference.value], [y], "o", color=colour, markerfacecolor=face, markersize=6)
        values += [*interval, *np.quantile(seeds, [0.1, 0.9])]
    axes.axvline(0, color="black", linewidth=1)
    margin = 0.05 * (max(values) - min(values)) or 0.01
    axes.set_xlim(min(*values, 0) - margin, max(*values, 0) + margin)
    axes.set_title(f"{column} over tasks" if column == MEAN else column)
    axes.xaxis.set_major_locator(MaxNLocator(5 if column == MEAN else 3))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _colour(balancer: str, index: int) -> str:
    """The colour of the reinforcement learning method with this balancer, or a free colour if there is none."""
    method = "shared_dqn" if balancer == BASELINE else balancer.replace(":", "_").lower()
    return COLOURS.get(method, OTHER_COLOURS[index % len(OTHER_COLOURS)])
