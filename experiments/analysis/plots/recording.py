"""Figures of one recording: the lines that an `mtrl.Recorder` or a training run has written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter
from numpy.typing import NDArray

from experiments.analysis.figure_parts import STEPS_LABEL
from experiments.analysis.looks import short
from experiments.analysis.plots.style import (
    RC,
    draw_matrix,
    grid_of_panels,
    handles_of,
    legend_beside,
    task_style,
)
from experiments.analysis.replicates import BINS, in_bins
from experiments.program.figures import save
from experiments.program.run_files import MOST_TASKS, STEP, BrokenRunError, Columns, read_columns

SPAN = 30  # ratio of the largest to the smallest value from which an axis is logarithmic
MOST_LINES = 12  # largest number of lines that a legend can tell apart

Array = NDArray[np.float64]
Curve = tuple[Array, Array]  # steps and values


@dataclass(frozen=True)
class Recording:
    """A recording, as curves. Every line has a step."""

    path: Path
    columns: Columns

    @classmethod
    def read(cls, path: Path) -> Recording:
        """The recording in `path`, which may be going on; a half-written last line is left out.

        Raises:
            BrokenRunError: the file is no recording, or has too many tasks for a figure.
        """
        columns = read_columns(path, follow_link=True, being_written=True)
        with_step = columns[STEP][0] if STEP in columns else np.empty(0, int)
        last = max((rows[-1] for rows, _ in columns.values()), default=-1)
        if len(with_step) <= last:
            missing = np.setdiff1d(np.arange(last + 1), with_step)[0] + 1
            raise BrokenRunError(f"{path}: line {missing} has no {STEP}: this is no recording")
        recording = cls(path, columns)
        if (tasks := len(recording.tasks)) > MOST_TASKS:
            raise BrokenRunError(f"'{path}' has {tasks:,} tasks; figures show at most {MOST_TASKS}")
        return recording

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """For each key, the steps of the lines that have it, and its values there. Values not finite are left out."""
        if STEP not in self.columns:
            return {}  # there are no lines
        steps = self.columns[STEP][1]
        return {key: (steps[rows], values) for key, (rows, values) in self.columns.items()}

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks that have a loss or a weight, in the order in which they first appear."""
        ends = (("train/", "/loss"), ("balancer/", "/weight"))
        found = (key[len(a) : -len(b)] for key in self.curves for a, b in ends if key.startswith(a) and key.endswith(b))
        return list(dict.fromkeys(found))

    @property
    def title(self) -> str:
        """The end of the title of every figure: the name of the file, and that it is one run alone."""
        averaged = f", averages over 1/{BINS} of it" if len(self.columns[STEP][0]) > BINS else ""
        return f"{Path(*self.path.absolute().parts[-2:])} (one run{averaged})"

    @property
    def step_label(self) -> str:
        """What the steps count: environment steps in a training run, updates in other recordings."""
        return STEPS_LABEL if "train/updates" in self.curves else "updates"

    def per_task(self, kind: str, name: str) -> dict[str, Curve]:
        """The curves `<kind>/<task>/<name>`, by task."""
        keys = {task: f"{kind}/{task}/{name}" for task in self.tasks}
        return {task: self.curves[key] for task, key in keys.items() if key in self.curves}

    def per_pair(self, name: str) -> dict[tuple[str, str], Curve]:
        """The curves `balancer/<name>/<task>_<other>`, by pair of tasks."""
        keys = {pair: f"balancer/{name}/{'_'.join(pair)}" for pair in permutations(self.tasks, 2)}
        return {pair: self.curves[key] for pair, key in keys.items() if key in self.curves}

    @property
    def diagnostics(self) -> dict[str, dict[str, Curve]]:
        """Other diagnostics of the balancer than weights and cosines, by name: curves by task or pair, or one curve."""
        found: dict[str, dict[str, Curve]] = {}
        for key in self.curves:
            kind, *path = key.split("/")
            if kind != "balancer":
                continue
            if len(path) == 1:
                found[path[0]] = {"": self.curves[key]}
            elif len(path) == 2:
                name = path[1] if path[0] in self.tasks else path[0]
                by_pair = {", ".join(pair): curve for pair, curve in self.per_pair(name).items()}
                found[name] = self.per_task("balancer", name) or by_pair
        return {name: curves for name, curves in found.items() if curves and name not in ("weight", "cosine")}


def losses(recording: Recording) -> Figure | None:
    """The loss of each task."""
    return _lines(recording, recording.per_task("train", "loss"), "loss", "Losses")


def weights(recording: Recording) -> Figure | None:
    """The coefficient of each task's gradient."""
    curves = recording.per_task("balancer", "weight")
    return _lines(recording, curves, "coefficient of gradient", "Task weights")


def cosines(recording: Recording) -> Figure | None:
    """The cosine between the gradients of every two tasks, against steps and as a mean over the recording."""
    pairs = recording.per_pair("cosine")
    if not pairs:
        return None
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes, heat_map = figure.subplots(1, 2, width_ratios=(1.6, 1))
    axes.axhline(0, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    _draw(axes, {", ".join(pair): curve for pair, curve in pairs.items()})
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("cosine (below 0: conflict)")
    _in_steps(axes, recording)
    legend_beside(axes, handles_of([axes]))
    matrix = np.full((len(recording.tasks), len(recording.tasks)), np.nan)
    for pair, (_, values) in pairs.items():
        i, j = map(recording.tasks.index, pair)
        matrix[i, j] = matrix[j, i] = values.mean()
    draw_matrix(heat_map, matrix, recording.tasks)
    heat_map.set_title("mean over the recording")
    figure.colorbar(heat_map.images[0], ax=heat_map, label="mean cosine")
    figure.suptitle(f"Cosines between task gradients: {recording.title}")
    return figure


def diagnostics(recording: Recording) -> Figure | None:
    """All other diagnostics of the balancer, in a panel each."""
    found = recording.diagnostics
    if not found:
        return None
    columns = min(3, len(found))
    figure = Figure(figsize=(0.4 + 4.4 * columns, 0.5 + 2.4 * -(-len(found) // columns)), layout="constrained")
    for axes, (name, curves) in zip(grid_of_panels(figure, len(found), columns), found.items(), strict=True):
        _draw(axes, curves)
        axes.set_title(name.replace("_", " "))
        _in_steps(axes, recording)
        if len(curves) > 1 and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="x-small", framealpha=0.7, frameon=True, edgecolor="none", ncols=-(-len(curves) // 6))
    figure.suptitle(f"Diagnostics of the balancer: {recording.title}")
    return figure


FIGURES: dict[str, Callable[[Recording], Figure | None]] = {  # None where there is nothing to draw
    "losses": losses,
    "weights": weights,
    "cosines": cosines,
    "diagnostics": diagnostics,
}


def draw(name: str, recording: Recording, path: Path) -> bool:
    """Write a figure to `path`. Without data, delete the file there. Returns whether there was data."""
    with mpl.rc_context(RC):
        figure = FIGURES[name](recording)
        if figure is None:
            path.unlink(missing_ok=True)
            return False
        save(figure, path)
    return True


def _lines(recording: Recording, curves: Mapping[str, Curve], unit: str, title: str) -> Figure | None:
    """A figure of one panel with a line per task."""
    if not curves:
        return None
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    _draw(axes, curves)
    axes.set_ylabel(unit)
    _in_steps(axes, recording)
    legend_beside(axes, handles_of([axes]))
    figure.suptitle(f"{title}: {recording.title}")
    return figure


def _draw(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Draw a line per curve. If there are many, they are grey, and their mean is drawn too."""
    lines = {name: in_bins(curve) if len(curve[0]) > BINS else curve for name, curve in curves.items()}
    many = len(lines) > MOST_LINES
    for index, (name, (x, y)) in enumerate(lines.items()):
        own = {**task_style(index), "linewidth": 1.4, "label": short(name)}
        style = {"color": "0.8", "linewidth": 0.7} if many else own
        axes.plot(x, y, marker="." if len(x) == 1 else "", **style)
    if many:
        grid: Array = np.unique(np.concatenate([x for x, _ in lines.values()]))
        mean = np.mean([np.interp(grid, x, y) for x, y in lines.values()], 0)
        axes.plot(grid, mean, color="black", linewidth=1.6, label=f"mean of {len(lines)}")
    values = np.concatenate([y for _, y in lines.values()])
    if values.min() > 0 and values.max() > SPAN * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _in_steps(axes: Axes, recording: Recording) -> None:
    axes.set_xlabel(recording.step_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
