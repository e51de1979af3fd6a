"""Figures of training runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from experiments.runs import Run

# Paul Tol's muted palette, told apart by all kinds of colour vision. A method keeps its colour in every figure; the
# blind variant is dashed.
COLOURS = {
    "shared_dqn": "#332288",
    "gradnorm": "#CC6677",
    "pcgrad": "#117733",
    "gradnorm_pcgrad": "#999933",
    "rgb": "#882255",
    "aim": "#DDCC77",
    "brc": "#88CCEE",
    "independent_dqn": "#44AA99",
}
OTHER_COLOURS = ("#AA4499", "#000000", "#777777", "#BBBBBB")
MANY = 5  # lines, above which a legend would cover them
TASK_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")

Runs = Mapping[str, Sequence[Run]]


def learning_curves(runs: Runs, tasks: Sequence[str], path: Path) -> None:
    """Greedy return against environment steps: one panel per task, one line per method (mean over seeds)."""
    figure = Figure(figsize=(4.2 * len(tasks), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
    for axes, task in zip(panels, tasks, strict=True):
        for name, of_name in runs.items():
            curves = [run.curve(f"eval/{task}/return") for run in of_name]
            _mean_and_range(axes, curves, label=_label(name, of_name), colour=_colour(name), dashed=_dashed(name))
        axes.axhline(200, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(task)
        axes.set_xlabel("environment steps (all tasks)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
    panels[0].set_ylabel("greedy return per episode")
    _legend(figure, panels)
    figure.suptitle("Learning curves: mean over seeds; band from lowest to highest seed; dotted: solved (200)")
    _save(figure, path)


def task_weights(runs: Runs, tasks: Sequence[str], path: Path) -> None:
    """Learned task weights against environment steps: one panel per method, one line per task (mean over seeds)."""
    runs = {name: of_name for name, of_name in runs.items() if _has_weights(of_name, tasks)} or runs
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(4.6 * columns, 0.8 + 3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).flatten()
    for axes in panels[len(runs) :]:
        axes.set_axis_off()
    for axes, (name, of_name) in zip(panels, runs.items(), strict=False):
        for task, colour in zip(tasks, TASK_COLOURS * len(tasks), strict=False):
            curves = [run.curve(f"balancer/{task}/weight") for run in of_name]
            _mean_and_range(axes, curves, label=task, colour=colour)
        axes.set_title(_label(name, of_name))
        axes.set_xlabel("environment steps (all tasks)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
    for axes in panels[::columns]:
        axes.set_ylabel("task weight (1 = equal)")
    _legend(figure, panels)
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


def _legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """In the first panel that shows anything, as a run without curves shows nothing; many lines' beside the panels."""
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        if len(handles) > MANY:
            figure.legend(handles, labels, fontsize="small", loc="outside right center")
        elif handles:
            axes.legend(fontsize="small")
        if handles:
            return


def _has_weights(runs: Sequence[Run], tasks: Sequence[str]) -> bool:
    return any(len(run.curve(f"balancer/{task}/weight")[0]) for run in runs for task in tasks)


def _label(name: str, runs: Sequence[Run]) -> str:
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
    return f"{name} ({seeds})"


def _dashed(name: str) -> bool:
    return name.endswith("_blind")


def _colour(name: str) -> str:
    method = name.removesuffix("_blind")
    return COLOURS.get(method, OTHER_COLOURS[crc32(method.encode()) % len(OTHER_COLOURS)])


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
