"""How task gradients relate and how they are balanced: weights, conflicts, AIM's thresholds, RGB's angles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.analysis.comparison import Analysis
from experiments.analysis.plots.style import (
    STEPS_LABEL,
    colour_limit,
    draw_curve,
    draw_matrix,
    grid_of_panels,
    handles_of,
    in_steps,
    label,
    legend_beside,
    mean_note,
    only_outer,
    seeds_note,
    task_style,
    title,
)
from experiments.analysis.replicates import BINS, Curve, Method

NARROWEST = 5.0  # inches, for the title


def task_weights(analysis: Analysis) -> Figure | None:
    """Learned coefficients of the task gradients against environment steps: a panel per method, a line per task."""
    methods = [method for method in analysis.methods if method.learns_weights]
    figure = _curves_per_method(methods, Method.weight_curve, analysis.tasks, "coefficient of gradient")
    if figure is not None:
        title(figure, f"Learned task weights, averages over 1/{BINS} of training: {mean_note(methods)}")
    return figure


def rgb_angles(analysis: Analysis) -> Figure | None:
    """Angles by which RGB rotates the task gradients: a panel per method, a line per task."""
    methods = [method for method in analysis.methods if any(method.angle_curve(task) for task in method.tasks)]
    figure = _curves_per_method(methods, Method.angle_curve, analysis.tasks, "rotation (rad)")
    if figure is not None:
        title(figure, f"RGB's rotations, averages over 1/{BINS} of training: {mean_note(methods)}")
    return figure


def conflicts(analysis: Analysis) -> Figure | None:
    """Cosines between task gradients, averaged over training: a heat map per method."""
    matrices = {method: cosines for method in analysis.methods if (cosines := method.mean_cosines()) is not None}
    for cosines in matrices.values():
        np.fill_diagonal(cosines, np.nan)  # 1, which says nothing
    figure = _heat_maps(matrices, "mean cosine")
    if figure is not None:
        note = seeds_note(list(matrices))
        title(figure, f"Cosine between task gradients, mean over training (below 0: conflict); {note}")
    return figure


def aim_thresholds(analysis: Analysis) -> Figure | None:
    """AIM's thresholds at the end of training: a heat map per method."""
    matrices = {method: tau for method in analysis.methods if (tau := method.thresholds()) is not None}
    figure = _heat_maps(matrices, "tau (a cosine)", "gives way to", "gradient of")
    if figure is not None:
        note = seeds_note(list(matrices))
        title(figure, f"AIM's thresholds after training: below tau, a row's gradient gives way to a column's; {note}")
    return figure


def _curves_per_method(
    methods: Sequence[Method],
    curve: Callable[[Method, str], Curve | None],
    tasks: Sequence[str],
    unit: str,
) -> Figure | None:
    if not methods:
        return None
    columns = min(4, len(methods))
    figure = Figure(
        figsize=(max(1.2 + 2.9 * columns, NARROWEST), 0.7 + 2.3 * -(-len(methods) // columns)), layout="constrained"
    )
    panels = grid_of_panels(figure, len(methods), columns, sharex=True)
    for axes, method in zip(panels, methods, strict=True):
        for index, task in enumerate(tasks):
            if task in method.tasks:
                draw_curve(axes, curve(method, task), task, **task_style(index))
        axes.set_title(label(method, methods))
        in_steps(axes)
    only_outer(panels, columns, y=unit, x=STEPS_LABEL)
    legend_beside(panels[columns - 1], handles_of(panels))
    return figure


def _heat_maps(
    matrices: dict[Method, NDArray[np.float64]], unit: str, x: str | None = None, y: str | None = None
) -> Figure | None:
    """Matrices (tasks, tasks) on one scale of colours around 0."""
    if not matrices:
        return None
    columns = min(5, len(matrices))
    figure = Figure(
        figsize=(max(1.4 + 2.3 * columns, NARROWEST), 0.8 + 2.3 * -(-len(matrices) // columns)), layout="constrained"
    )
    panels = grid_of_panels(figure, len(matrices), columns)
    limit = colour_limit(matrices.values())
    for axes, (method, matrix) in zip(panels, matrices.items(), strict=True):
        draw_matrix(axes, matrix, method.tasks, limit)
        axes.set_title(label(method, list(matrices)))
    only_outer(panels, columns, x, y)
    shrink = 0.6 if len(matrices) <= columns else 0.4
    figure.colorbar(panels[0].images[0], ax=panels, label=unit, shrink=shrink, panchor=False)
    return figure
