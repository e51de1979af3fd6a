"""Learning curves."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.analysis.comparison import Analysis
from experiments.analysis.plots.style import (
    SOLVED,
    draw_curve,
    handles_of,
    in_steps,
    label,
    legend_beside,
    line_style,
    mean_note,
    title,
    variants,
)

LOWEST = -300
"""Return below which curves are cut off: a random policy has about -200, and what falls below says little more."""


def learning_curves(analysis: Analysis) -> Figure | None:
    """Greedy return against environment steps: a row per variant, a column per task, a line per method."""
    return _curves(analysis, minutes=False)


def learning_curves_time(analysis: Analysis) -> Figure | None:
    """Greedy return against minutes of training: a row per variant, a column per task, a line per method."""
    return _curves(analysis, minutes=True)


def _curves(analysis: Analysis, minutes: bool) -> Figure | None:
    rows = variants(analysis)
    drawn = [m for m in analysis.methods if any(m.learning_curve(task, minutes) for task in m.tasks)]
    if not drawn:
        return None
    columns = len(analysis.tasks)
    figure = Figure(figsize=(1.6 + 3.1 * columns, 0.7 + 2.6 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    for row, (variant, methods) in zip(panels, rows.items(), strict=True):
        for axes, task in zip(row, analysis.tasks, strict=True):
            for method in methods:
                curve = method.learning_curve(task, minutes)
                draw_curve(axes, curve, label(method, drawn, method.family), **line_style(method))
            axes.axhline(SOLVED, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
            axes.set_title(f"{task}, {variant}")
        row[0].set_ylabel("greedy return per episode")
        legend_beside(row[-1], handles_of(row))
    for axes in panels[-1]:
        if minutes:
            axes.set_xlabel("minutes of training")
        else:
            in_steps(axes)
    low, high = panels[0, 0].get_ylim()
    panels[0, 0].set_ylim(max(low, LOWEST), high)
    cut = f", cut off at {LOWEST}" if low < LOWEST else ""
    axis = "wall time" if minutes else "environment steps"
    title(figure, f"Return against {axis}: {mean_note(drawn)}; dotted: solved ({SOLVED}){cut}")
    return figure
