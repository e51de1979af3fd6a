"""Drawing the figures of a comparison with Matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from experiments.analysis.figure_data import (
    CurveFigure,
    FigureData,
    MatrixFigure,
    Panel,
    Point,
    RowFigure,
    SizeFigure,
)
from experiments.analysis.figure_parts import END, MOST_BANDS, RAISED
from experiments.analysis.looks import short, thousands
from experiments.analysis.plots.style import (
    draw_curve,
    draw_matrix,
    grid_of_panels,
    handles_of,
    legend_beside,
    marker,
    only_outer,
    style,
    title,
    variant_markers,
)

NARROWEST = 5.0  # inches, so that the title has room
MOST_BESIDE = 4  # panels in a row; with more, letters would be too small at the width of a page
SPAN = 1.3  # length of an axis of steps, relative to the last step


@singledispatch
def draw(data: FigureData) -> Figure:
    """The figure, in the style of `RC` if that is in force.

    Raises:
        TypeError: no function below draws figures of this class.
    """
    raise TypeError(f"{type(data).__name__} cannot be drawn")


@draw.register
def _curves(data: CurveFigure) -> Figure:
    layout: dict[str, Callable[[CurveFigure], Figure]] = {
        "task and variant": _curves_per_task,
        "variant": _curves_per_variant,
        "method": _curves_per_method,
    }
    return layout[data.panel_per](data)


def _curves_per_task(data: CurveFigure) -> Figure:
    """A row per variant and a column per task."""
    rows = list(dict.fromkeys(panel.variant for panel in data.panels))
    columns = len(data.panels) // len(rows)
    figure = Figure(figsize=(1.6 + 3.1 * columns, 0.7 + 2.6 * len(rows)), layout="constrained")
    own = any(panel.limits for panel in data.panels)
    grid = figure.subplots(len(rows), columns, sharex=True, sharey="col" if own else True, squeeze=False)
    for axes, panel in zip(grid.flat, data.panels, strict=True):
        _draw_lines(axes, data, panel)
        if panel.limits is not None:
            axes.set_ylim(panel.limits)
    for row in grid:
        row[0].set_ylabel(data.y.label)
        legend_beside(row[-1], handles_of(row)[::-1])
    for axes in grid[-1]:
        _label_x(axes, data)
    if data.y.limits is not None:
        grid[0, 0].set_ylim(data.y.limits)
    title(figure, data.title, data.note)
    return figure


def _curves_per_variant(data: CurveFigure) -> Figure:
    """Panels side by side, each with its legend beside it."""
    figure, panels = _side_by_side(data, 0.8 + 5.2 * len(data.panels), 3.8)
    bands = all(len(panel.lines) <= MOST_BANDS for panel in data.panels)
    for axes, panel in zip(panels, data.panels, strict=True):
        _draw_lines(axes, data, panel, bands)
        _label_x(axes, data)
        legend_beside(axes, handles_of([axes])[::-1])
    panels[0].set_ylabel(data.y.label)
    title(figure, data.title, " ".join(filter(None, (data.note, data.band_note if bands else ""))))
    return figure


def _curves_per_method(data: CurveFigure) -> Figure:
    """Rows of at most four panels."""
    figure, panels, columns = _rows_of(data, most=4, panel_width=2.9, margins=(1.2, 0.7))
    for axes, panel in zip(panels, data.panels, strict=True):
        _draw_lines(axes, data, panel)
        _label_x(axes, data)
    only_outer(panels, columns, x=data.x.label, y=data.y.label)
    legend_beside(panels[columns - 1], handles_of(panels))
    title(figure, data.title, data.note)
    return figure


@draw.register
def _rows(data: RowFigure) -> Figure:
    """Panels with a row per method, in rows of at most four panels."""
    columns = -(-len(data.panels) // -(-len(data.panels) // MOST_BESIDE))
    figure = Figure(layout="constrained")
    figure.set_size_inches(2.6 + 2.3 * columns, (1.2 + 0.34 * len(data.rows)) * -(-len(data.panels) // columns))
    shared = not any(panel.limits for panel in data.panels)
    panels = grid_of_panels(figure, len(data.panels), columns, sharex=shared, sharey=True)
    panels[0].set_yticks(range(len(data.rows)), map(short, data.rows))
    panels[0].set_ylim(len(data.rows) - 0.4, -0.6)
    for axes, panel in zip(panels, data.panels, strict=True):
        axes.grid(axis="y", color="0.93", linewidth=0.8)
        axes.set_axisbelow(True)
        for point in panel.points:
            _draw_point(axes, point)
        if (mark := data.x.mark if panel.mark is None else panel.mark) is not None:
            axes.axvline(mark, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
        for variant, value in panel.baselines.items():
            axes.axvline(value, color="0.6", linewidth=0.8, linestyle="--" if variant == "blind" else "-", zorder=0)
        if (limits := panel.limits or data.x.limits) is not None:
            axes.set_xlim(limits)
        if data.last is not None:
            _end_in_never(axes, data.last)
        axes.set_title(short(panel.title))
    only_outer(panels, columns, x=data.x.label)
    if data.both_variants:
        legend_beside(panels[columns - 1], variant_markers())
    elif data.keys:
        legend_beside(panels[columns - 1], handles_of(panels))
    fractions = any(point.reached for panel in data.panels for point in panel.points)
    note = f"{data.note} Fractions such as 9/10: how many of the seeds reached it." if fractions else data.note
    title(figure, data.title, note)
    return figure


def _end_in_never(axes: Axes, last: float) -> None:
    """Steps up to the last one, and beyond it a grey band for what never happened."""
    steps = EngFormatter(sep="")
    axes.axvspan(1.06 * last, SPAN * last, color="0.94", zorder=0, linewidth=0)
    axes.text((SPAN - 0.02) * last, -0.5, "never", rotation=90, ha="right", va="top", color="0.4", fontsize="small")
    axes.set_xlim(0, SPAN * last)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: steps(x) if x <= last else ""))


@draw.register
def _sizes(data: SizeFigure) -> Figure:
    """Panels side by side with a place for each number of parameters."""
    figure, panels = _side_by_side(data, 2.6 + 4 * len(data.panels), 3.8)
    for axes, panel in zip(panels, data.panels, strict=True):
        for point in panel.points:
            _draw_point(axes, point, upright=True)
        axes.set_xticks(range(len(data.sizes)), [f"{size:,}" for size in data.sizes])
        axes.set_xlim(-0.6, len(data.sizes) - 0.4)
        axes.set_title(short(panel.title))
        axes.set_xlabel("parameters")
        axes.grid(axis="y", color="0.93", linewidth=0.8)
    panels[0].set_ylabel(data.y.label)
    legend_beside(panels[-1], handles_of(panels))
    title(figure, data.title, data.note)
    return figure


@draw.register
def _matrices(data: MatrixFigure) -> Figure:
    """Rows of at most five heat maps with one bar of colours."""
    figure, panels, columns = _rows_of(data, most=5, panel_width=2.3, margins=(1.4, 0.8))
    for axes, panel in zip(panels, data.panels, strict=True):
        assert panel.matrix is not None
        draw_matrix(axes, panel.matrix, panel.tasks)
        axes.set_title(short(panel.title))
    only_outer(panels, columns, data.x, data.y)
    shrink = 0.6 if len(panels) <= columns else 0.4
    figure.colorbar(panels[0].images[0], ax=panels, label=data.unit, shrink=shrink, panchor=False)
    title(figure, data.title, data.note)
    return figure


def _side_by_side(data: FigureData, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in one row with common axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    shared = not any(panel.limits for panel in data.panels)
    return figure, list(figure.subplots(1, len(data.panels), sharex=shared, sharey=True, squeeze=False)[0])


def _rows_of(
    data: FigureData, most: int, panel_width: float, margins: tuple[float, float]
) -> tuple[Figure, Sequence[Axes], int]:
    """Panels in rows of at most `most`, and the number of columns."""
    columns = min(most, len(data.panels))
    width, height = margins[0] + panel_width * columns, margins[1] + 2.3 * -(-len(data.panels) // columns)
    figure = Figure(figsize=(max(width, NARROWEST), height), layout="constrained")
    shared = isinstance(data, CurveFigure)
    return figure, grid_of_panels(figure, len(data.panels), columns, sharex=shared, sharey=shared), columns


def _draw_lines(axes: Axes, data: CurveFigure, panel: Panel, bands: bool = True) -> None:
    for line in panel.lines:
        draw_curve(axes, line.curve, line.label, bands, **style(line.key.look))
        if line.end is not None and data.last is not None:
            axes.plot(END * data.last, line.end, ">", color=line.key.look.colour, markersize=5, mew=0, clip_on=False)
    across: dict[str, Any] = {"color": "0.5", "linewidth": 0.8, "linestyle": ":", "zorder": 0}
    mark, on = data.mark(panel)
    if mark is not None:
        (axes.axvline if on == "x" else axes.axhline)(mark, **across)
    axes.set_title(short(panel.title))


def _label_x(axes: Axes, data: CurveFigure) -> None:
    axes.set_xlabel(data.x.label)
    if data.x.quantity == "steps":
        assert data.last is not None
        axes.set_xticks(steps := np.linspace(0, data.last, 4), map(thousands, steps))


def _draw_point(axes: Axes, point: Point, upright: bool = False) -> None:
    """The estimate with its interval: along a row, or `upright`; and the values of single seeds as dots."""
    colour, interval = point.key.look.colour, point.estimate.interval
    dots = list(point.seeds.values())
    axes.plot(dots, np.full(len(dots), point.place - RAISED), ".", color=colour, alpha=0.55, markersize=5, mew=0)
    value, place = [point.estimate.value], [point.place]
    if interval is not None:
        ends, places = list(interval), [point.place] * 2
        line = (places, ends) if upright else (ends, places)
        axes.plot(*line, color=colour, linewidth=1.4, solid_capstyle="projecting" if upright else "butt")
    at = (place, value) if upright else (value, place)
    axes.plot(*at, "o", label=short(point.label), **marker(point.key.blind, colour))
    if point.reached:
        right = max(point.estimate.value, interval[1] if interval else 0)
        axes.annotate(point.reached, (right, point.place), (5, 0), textcoords="offset points", fontsize=6, va="center")
