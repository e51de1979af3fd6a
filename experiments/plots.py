"""Figures of training runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from experiments.runs import Run

# Okabe and Ito's palette, told apart by all kinds of colour vision. A method keeps its colour in every figure; the
# blind variant is dashed.
COLOURS = {"shared_dqn": "#0072B2", "gradnorm": "#D55E00"}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TASK_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

Runs = Mapping[str, Sequence[Run]]


def learning_curves(runs: Runs, tasks: Sequence[str], path: Path) -> None:
    """Greedy return against environment steps: one panel per task, one line per method (mean over seeds)."""
    figure = Figure(figsize=(4.2 * len(tasks), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
    for axes, task in zip(panels, tasks, strict=True):
        for index, (name, of_name) in enumerate(runs.items()):
            curves = [run.curve(f"eval/{task}/return") for run in of_name]
            _mean_and_range(
                axes, curves, label=_label(name, of_name), colour=_colour(name, index), dashed=_dashed(name)
            )
        axes.axhline(200, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(task)
        axes.set_xlabel("environment steps (all tasks)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
    panels[0].set_ylabel("greedy return per episode")
    _legend(panels)
    figure.suptitle("Learning curves: mean over seeds; band from lowest to highest seed; dotted: solved (200)")
    _save(figure, path)


def task_weights(runs: Runs, tasks: Sequence[str], path: Path) -> None:
    """Learned task weights against environment steps: one panel per method, one line per task (mean over seeds)."""
    figure = Figure(figsize=(4.6 * len(runs), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(runs), sharey=True))
    for axes, (name, of_name) in zip(panels, runs.items(), strict=True):
        for task, colour in zip(tasks, TASK_COLOURS * len(tasks), strict=False):
            curves = [run.curve(f"balancer/{task}/weight") for run in of_name]
            _mean_and_range(axes, curves, label=task, colour=colour)
        axes.set_title(_label(name, of_name))
        axes.set_xlabel("environment steps (all tasks)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
    panels[0].set_ylabel("task weight (1 = equal)")
    _legend(panels)
    figure.suptitle("Task weights: mean over seeds; band from lowest to highest seed")
    _save(figure, path)


def descents(frames: Mapping[str, Sequence[NDArray[np.uint8]]], path: Path, moments: int = 12) -> None:
    """One panel per task: a descent in one picture, the craft shown at `moments` moments from start to landing."""
    figure = Figure(figsize=(4.5 * len(frames), 3.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(frames)))
    for axes, (task, of_task) in zip(panels, frames.items(), strict=True):
        chosen = np.linspace(0, len(of_task) - 1, moments).round().astype(int)
        # The sky is black: the brightest value of each pixel keeps every craft.
        axes.imshow(np.max([of_task[index] for index in chosen], 0))
        axes.set_title(task)
        axes.set_axis_off()
    _save(figure, path)


def _mean_and_range(
    axes: Axes,
    curves: Sequence[tuple[Sequence[float], Sequence[float]]],
    label: str,
    colour: str,
    dashed: bool = False,
) -> None:
    """The mean of several curves, each with its own abscissae, over the range that all of them cover."""
    arrays = [(np.asarray(x, float), np.asarray(y, float)) for x, y in curves if len(x)]
    if not arrays:
        return
    grid: NDArray[np.float64] = np.unique(np.concatenate([x for x, _ in arrays]))
    start, stop = max(x[0] for x, _ in arrays), min(x[-1] for x, _ in arrays)
    grid = grid[(grid >= start) & (grid <= stop)]
    if not len(grid):
        return
    values = np.stack([np.interp(grid, x, y) for x, y in arrays])  # (seeds, points)
    axes.plot(grid, values.mean(0), color=colour, label=label, linestyle="--" if dashed else "-", linewidth=1.6)
    if len(arrays) > 1:
        axes.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def _legend(panels: Iterable[Axes]) -> None:
    """In the first panel that shows anything: a method without weights, or a run without curves, shows nothing."""
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
            return


def _label(name: str, runs: Sequence[Run]) -> str:
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
    return f"{name} ({seeds})"


def _dashed(name: str) -> bool:
    return name.endswith("_blind")


def _colour(name: str, index: int) -> str:
    return COLOURS.get(name.removesuffix("_blind"), OTHER_COLOURS[index % len(OTHER_COLOURS)])


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
