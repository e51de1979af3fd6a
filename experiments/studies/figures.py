"""Figures of the studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from experiments.analysis.intervals import means
from experiments.analysis.looks import COLOURS, TASK_COLOURS
from experiments.analysis.plots.style import RC, draw_curve, grid_of_panels, handles_of
from experiments.analysis.replicates import over_seeds
from experiments.studies.fitting import (
    ALONE,
    CLEAN,
    CLEAN_SAME_ROWS,
    GATED,
    PUBLISHED,
    SAME_ROWS,
    STATIC_SAME_ROWS,
    UNIT_NORM,
    Fit,
)
from experiments.studies.problems import valley

Array = NDArray[np.float64]

ARROW_COLUMNS = 4
BLUES = (TASK_COLOURS[0], TASK_COLOURS[4])  # the colours of two tasks; no method has a blue arrow

STYLES: dict[str, dict[str, Any]] = {
    "naive": {"color": COLOURS["shared_dqn"], "linestyle": "-"},
    "static": {"color": COLOURS["pcgrad"], "linestyle": "-"},
    PUBLISHED: {"color": COLOURS["aim"], "linestyle": ":"},
    "AIM": {"color": COLOURS["aim"], "linestyle": "-"},
    UNIT_NORM: {"color": COLOURS["aim"], "linestyle": "--"},
    GATED: {"color": "#AA4499", "linestyle": "-"},
    "GradNorm": {"color": COLOURS["gradnorm"], "linestyle": "-"},
    "RGB": {"color": COLOURS["rgb"], "linestyle": "-"},
    ALONE: {"color": COLOURS["independent_dqn"], "linestyle": "--"},
    SAME_ROWS: {"color": COLOURS["shared_dqn"], "linestyle": ":"},
    STATIC_SAME_ROWS: {"color": COLOURS["pcgrad"], "linestyle": ":"},
    CLEAN: {"color": COLOURS["independent_dqn"], "linestyle": "--"},
    CLEAN_SAME_ROWS: {"color": COLOURS["independent_dqn"], "linestyle": ":"},
}


def learning_curves(
    panels: Mapping[str, Mapping[str, Mapping[int, Fit]]], tasks: int, unit: str, *, change: int | None = None
) -> Figure:
    """Validation error against updates, with one panel per setting and one curve per method.

    Args:
        panels: the trainings by the panel's title, method and seed. A curve is the mean over seeds.
        tasks: the error is the mean over this many tasks, the first ones.
        unit: the label of the vertical axis.
        change: the update from which on the tasks relate differently; a dotted line marks it in the last panel.
            Default: there is no such update.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(2.0 + 3.8 * len(panels), 3.2), layout="constrained")
        for axes, (title, fits) in zip(grid_of_panels(figure, len(panels), 3), panels.items(), strict=True):
            shown = {}
            for method, by_seed in fits.items():
                shown[method] = over_seeds([(fit.steps, fit.errors[:, :tasks].mean(1)) for fit in by_seed.values()])
                draw_curve(axes, shown[method], method, **STYLES[method])
            means_shown = np.concatenate([curve.mean for curve in shown.values() if curve is not None])
            # The limits come from the means, because an interval may reach below 0, and this axis is logarithmic.
            axes.set(yscale="log", ylim=(0.7 * means_shown.min(), 1.3 * means_shown.max()))
            axes.yaxis.set_major_formatter(_plain_number)
            axes.yaxis.set_minor_formatter(_plain_number)
            axes.set_title(title)
            axes.set_xlabel("updates")
            if change is not None and title == list(panels)[-1]:
                axes.axvline(change, color="0.6", linewidth=0.8, linestyle=":")
        figure.axes[0].set_ylabel(unit)
        figure.legend(handles=handles_of(figure.axes), loc="outside right upper")
    return figure


def gradient_arrows(
    cases: Mapping[str, tuple[Array, Array, Mapping[str, Array]]],
) -> Figure:
    """Descent directions at the origin, beside two bowls: a block of panels for each case, a panel for each method.

    In each panel the two tasks' arrows are thin and lie on the method's own, which is broad, so that none of them
    covers another one, even where they are the same.

    Args:
        cases: by the block's title, the minima of the two bowls (2, 2), their steepness (2,), and the direction (2,) of
            each method's update.
    """
    with mpl.rc_context(RC):
        rows = [-(-len(updates) // ARROW_COLUMNS) for _, _, updates in cases.values()]
        figure = Figure(figsize=(2.1 * ARROW_COLUMNS, 0.8 + 1.75 * sum(rows)), layout="constrained")
        blocks = figure.subfigures(len(cases), 1, height_ratios=rows, squeeze=False)[:, 0]
        for block, (title, (minima, steepness, updates)) in zip(blocks, cases.items(), strict=True):
            gradients = steepness[:, None] * minima  # downhill, at the origin
            reach = 1.15 * float(np.abs(np.stack([*gradients, *updates.values()])).max())
            block.suptitle(title)
            panels = grid_of_panels(block, len(updates), ARROW_COLUMNS)
            for axes, (method, update) in zip(panels, updates.items(), strict=True):
                _draw_bowls(axes, minima, steepness, reach)
                _draw_arrow(axes, update, str(STYLES[method]["color"]), 0.05, alpha=0.5)
                for gradient, colour in zip(gradients, BLUES, strict=True):
                    _draw_arrow(axes, gradient, colour, 0.012)
                axes.set(xlim=(-reach, reach), ylim=(-0.3 * reach, reach), aspect="equal", xticks=[], yticks=[])
                axes.set_title(method, fontsize="small")
        handles = [Line2D([], [], color=colour, label=f"task {i + 1} alone", lw=1) for i, colour in enumerate(BLUES)]
        handles.append(Line2D([], [], color="0.5", label="the method's update", lw=5, alpha=0.5))
        blocks[-1].legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_bowls(axes: Axes, minima: Array, steepness: Array, reach: float) -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(-reach, reach, 80)] * 2))  # (2, 80, 80)
    for task, minimum in enumerate(minima):
        bowl = steepness[task] * ((grid - minimum[:, None, None]) ** 2).sum(0)
        axes.contour(*grid, np.sqrt(bowl), levels=7, colors=BLUES[task], alpha=0.25, linewidths=0.6)


def _draw_arrow(axes: Axes, end: Array, colour: str, width: float, alpha: float = 1.0) -> None:
    head = {"headwidth": 3, "headlength": 3, "headaxislength": 3} if alpha < 1 else {}
    look: dict[str, Any] = {"color": colour, "width": width, "alpha": alpha, "linewidth": 0, **head}
    axes.quiver(0, 0, *end, angles="xy", scale_units="xy", scale=1, zorder=3, **look)


def transfer(relatedness: Sequence[float], gains: Sequence[Sequence[float]]) -> Figure:
    """How much larger the error of a shared model is than the error of one model per task.

    Args:
        relatedness: the relatedness of the tasks (R,), the horizontal axis.
        gains: the difference of the two errors (R, seeds).
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.2, 3.2), layout="constrained")
        axes = figure.subplots()
        mean, half = means(np.transpose(np.asarray(gains, float)))
        axes.errorbar(relatedness, mean, yerr=half, fmt="o-", color=COLOURS["shared_dqn"], capsize=3)
        axes.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(xlabel="relatedness of the tasks", ylabel="error, naive minus alone", xticks=list(relatedness))
        axes.set_title("Above 0: negative transfer (mean, 95 % interval)")
    return figure


def valley_paths(paths: Mapping[str, Array], seed: int) -> Figure:
    """The path (P, 2) of each method's parameters, over the sum of the valley's two losses."""
    with mpl.rc_context(RC):
        columns = min(3, len(paths))
        rows = -(-len(paths) // columns)
        figure = Figure(figsize=(0.9 + 3.1 * columns, 0.6 + 2.5 * rows), layout="constrained")
        every = np.concatenate(list(paths.values()))
        low, high = every.min(0) - 0.7, every.max(0) + 0.7
        grid = np.stack(np.meshgrid(np.linspace(low[0], high[0], 160), np.linspace(low[1], high[1], 160)))
        height = valley(torch.from_numpy(grid).float(), torch.zeros(1, 2)).sum(0).numpy()
        panels = grid_of_panels(figure, len(paths), 3, sharex=True, sharey=True)
        for axes, (method, path) in zip(panels, paths.items(), strict=True):
            axes.contourf(*grid, height, levels=20, cmap="Greys", alpha=0.6)
            axes.plot(*path.T, color="#0072B2", linewidth=1.0)
            axes.plot(*path[0], "o", color="#0072B2", markersize=5)
            axes.plot(*path[-1], "*", color="#D55E00", markersize=10)
            axes.set_title(method)
            _plane(axes)
        figure.suptitle(f"From the dot to the star, seed {seed}; lighter is lower")
    return figure


def feature_use(own: Mapping[str, Sequence[Sequence[float]]], tasks: Sequence[str]) -> Figure:
    """Which share of each task's word use falls on the task's own words, with one bar per method.

    Args:
        own: for each method the shares (seeds, T), between 0 and 1.
        tasks: the names of the tasks (T,).
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(1.2 + 3.2 * len(tasks), 0.8 + 0.35 * len(own)), layout="constrained")
        panels = grid_of_panels(figure, len(tasks), len(tasks), sharey=True)
        for task, axes in enumerate(panels):
            for row, (method, shares) in enumerate(own.items()):
                mean, half = means(np.asarray(shares, float))
                colour = STYLES[method]["color"]
                hatch = "//" if STYLES[method]["linestyle"] != "-" else None
                axes.barh(row, mean[task], color=colour, alpha=0.75, hatch=hatch, edgecolor="white")
                error = None if half is None else half[task]
                axes.errorbar(mean[task], row, xerr=error, color="0.3", capsize=2, linewidth=1)
            axes.set_yticks(range(len(own)), list(own))
            axes.axvline(0.5, color="0.3", linewidth=1, linestyle=":")  # a task that uses both tasks' words alike
            axes.set(xlim=(0, 1), xlabel=f"share of {tasks[task]}'s word use on its own words")
        panels[0].invert_yaxis()
    return figure


def bars(panels: Mapping[str, Mapping[str, Mapping[int, float]]], unit: str, title: str) -> Figure:
    """A number for each method as a bar with its 95 % interval, and each seed as a dot: one panel per setting.

    Args:
        panels: the numbers by the panel's title, method and seed.
        unit: the label of the horizontal axis.
        title: the title above all panels.
    """
    with mpl.rc_context(RC):
        rows = max(len(of) for of in panels.values())
        figure = Figure(figsize=(1.2 + 3.2 * len(panels), 1.2 + 0.35 * rows), layout="constrained")
        axes_of = grid_of_panels(figure, len(panels), len(panels), sharey=True, sharex=True)
        for axes, (name, by_method) in zip(axes_of, panels.items(), strict=True):
            for row, (method, by_seed) in enumerate(by_method.items()):
                values = np.array(list(by_seed.values()), float)
                mean, half = means(values[:, None])
                axes.barh(row, mean[0], color=STYLES[method]["color"], alpha=0.5)
                axes.plot(values, np.full(len(values), row), ".", color="0.3", markersize=3)
                if half is not None:
                    axes.errorbar(mean[0], row, xerr=half[0], color="black", capsize=2, linewidth=1)
            axes.set_yticks(range(len(by_method)), list(by_method))
            axes.set(xlabel=unit, title=name)
        axes_of[0].invert_yaxis()
        figure.suptitle(title)
    return figure


def _plain_number(value: float, position: float) -> str:
    """A tick's label: a plain number such as 0.2, and an empty label where labels would crowd the axis."""
    text = f"{value:g}"
    return text if text.strip("0.")[:1] in ("1", "2", "5") else ""


def _plane(axes: Axes) -> None:
    axes.set(xlabel="θ₁", ylabel="θ₂")
    axes.label_outer()
