"""The figures of `experiments.analysis.figures` as data for plotly.js."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import plotly.graph_objects as go

from experiments.analysis.comparison import MEAN, WORST, Analysis
from experiments.analysis.figure_data import (
    Axis,
    CurveFigure,
    FigureData,
    Key,
    Line,
    MatrixFigure,
    Panel,
    Point,
    RowFigure,
    SizeFigure,
)
from experiments.analysis.figure_parts import END, MOST_BANDS, RAISED
from experiments.analysis.figures import FIGURES
from experiments.analysis.looks import DIVERGING, GREY, cosine, few_seeds, thousands
from experiments.analysis.report.colours import faded

Figure = dict[str, Any]  # `data` and `layout` of plotly.js

MOST_POINTS = 200  # of a curve: as many as a plot has room for
HEIGHT = 300  # of a plot, in pixels
ROW = 30  # of a method, in pixels, where methods are rows
LONGEST = 18  # characters of a name beside a row
BAND, FAINT = 0.13, 0.4  # opacities
BEYOND, SPAN = 1.06, 1.24  # where axes of steps end, without and with "never", relative to the last step
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}

# What is said of a point of a curve, and how the numbers of its interval are written.
Y_SAYS = {
    "return": ("return %{y:.1f}", "{:.1f}"),
    "share": ("%{y:.0%} of seeds and tasks", "{:.0%}"),
    "coefficient": ("coefficient %{y:.3f}", "{:.3f}"),
    "rotation": ("rotation (rad) %{y:.3f}", "{:.3f}"),
}
X_SAYS = {
    "steps": "at %{x:.4~s} steps",
    "return": "are above %{x:.0f}",
}


@dataclass(frozen=True)
class Plot:
    """One plot."""

    title: str
    figure: Figure
    height: int = HEIGHT
    of: str = ""  # id of the method, if the plot shows one method alone


@dataclass(frozen=True)
class Chart:
    """A section of the report: plots of one kind."""

    id: str
    title: str
    note: str
    plots: Sequence[Plot]
    keys: Sequence[Key] = ()  # a legend for this section alone
    scale: tuple[str, str, str] | None = None  # of the colours of heat maps: lowest number, highest number, unit
    narrow: bool = False  # whether more than three plots fit side by side


def charts(analysis: Analysis) -> list[Chart]:
    """Every chart that there is data for."""
    return [chart(data) for make in FIGURES.values() if (data := make(analysis)) is not None]


def dash(key: Key) -> str:
    """The dashes of a line: those of a task, or dashed for a method of the blind variant and solid for an aware one."""
    if key.id.startswith("m") and key.look.dashes == "-":
        return "dash" if key.blind else "solid"
    return DASHES[key.look.dashes]


@singledispatch
def chart(data: FigureData) -> Chart:
    """The chart of a figure.

    Raises:
        TypeError: no function below makes charts of figures of this class.
    """
    raise TypeError(f"{type(data).__name__} cannot be drawn")


@chart.register
def _curves(data: CurveFigure) -> Chart:
    plots = []
    for panel in data.panels:
        hovered = len(panel.lines) > MOST_BANDS
        traces = [trace for line in panel.lines for trace in _line(line, data, hovered)]
        y = _axis(data.y) | ({} if panel.limits is None else {"range": list(panel.limits)})
        if traces:
            plots.append(_plot(panel, _figure(traces, _layout(_axis(data.x) | _ticks(data), y, *data.mark(panel)))))
    note = f"{data.note} {data.band_note}" if data.band_note else data.note
    if any(trace.get("meta") == "hovered" for plot in plots for trace in plot.figure["data"]):
        note += " The interval of a method is shown while the pointer is on its line or its name in the legend."
    return Chart(_id(data), data.title, note, plots, data.keys)


@chart.register
def _rows(data: RowFigure) -> Chart:
    rows = {
        "tickvals": list(range(len(data.rows))),
        "ticktext": ["<br>".join(map(_text, _in_lines(name))) for name in data.rows],
        "range": [len(data.rows) - 0.4, -0.6],
        "zeroline": False,
    }
    plots = []
    # A page is read from the top: the mean and the worst task come before the single tasks.
    for panel in sorted(data.panels, key=lambda panel: panel.title not in (MEAN, WORST)):
        traces = [trace for point in panel.points for trace in _point(point)]
        x = _axis(data.x) | ({} if panel.limits is None else {"range": list(panel.limits)})
        layout = _layout(x, rows, data.x.mark if panel.mark is None else panel.mark, "x")
        layout["shapes"] = [*layout.get("shapes", ()), *map(_baseline, panel.baselines.items())]
        if data.last is not None:
            _end_in_never(layout, data.last)
        plots.append(_plot(panel, _figure(traces, layout), 90 + ROW * len(data.rows)))
    note = f"{data.note} Filled: aware; open: blind." if data.both_variants else data.note
    return Chart(_id(data), data.title, note, plots, data.keys)


def _baseline(line: tuple[str, float]) -> Figure:
    """The line of a variant's baseline: dashed for the blind one."""
    variant, value = line
    dashes = "dash" if variant == "blind" else "solid"
    ends = {"x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **ends, "line": {"color": "#888888", "width": 1, "dash": dashes}, "layer": "below"}


def _end_in_never(layout: Figure, last: float) -> None:
    """Steps up to the last one, and beyond it a grey band for what never happened."""
    steps = [0, last / 2, last]
    layout["xaxis"] |= {"range": [0, SPAN * last], "tickangle": 0}
    layout["xaxis"] |= {
        "tickvals": _numbers([*steps, (SPAN + 1) / 2 * last]),
        "ticktext": [*map(thousands, steps), "<br>never"],  # on a line of its own: the last step is beside it
    }
    band = {"type": "rect", "x0": 1.05 * last, "x1": SPAN * last, "y0": 0, "y1": 1, "yref": "paper"}
    layout["shapes"] = [{**band, "fillcolor": "rgba(128, 128, 128, 0.12)", "line": {"width": 0}, "layer": "below"}]


@chart.register
def _sizes(data: SizeFigure) -> Chart:
    x = {"title": "parameters", "tickangle": 0, "range": [-0.6, len(data.sizes) - 0.4]}
    x |= {"tickvals": list(range(len(data.sizes))), "ticktext": [f"{size:,}" for size in data.sizes]}
    plots = []
    for panel in data.panels:
        if panel.points:
            traces = [trace for point in panel.points for trace in _point(point, upright=True)]
            plots.append(_plot(panel, _figure(traces, _layout(x, _axis(data.y)))))
    return Chart(_id(data), data.title, data.note, plots)


@chart.register
def _matrices(data: MatrixFigure) -> Chart:
    says = data.says.format(row="%{y}", column="%{x}", value="%{text}").replace("\n", "<br>")
    plots = []
    for panel in data.panels:
        assert panel.matrix is not None
        names = [_text(task) for task in panel.tasks]
        trace = go.Heatmap(
            x=names,
            y=names,
            z=[_numbers(row) for row in panel.matrix],
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            showscale=False,
            text=[["" if math.isnan(value) else cosine(value) for value in row] for row in panel.matrix],
            texttemplate="%{text}",
            hovertemplate=f"{says}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
        )
        layout = _layout({"type": "category"}, {"type": "category", "autorange": "reversed"})
        for axis in ("xaxis", "yaxis"):
            layout[axis] |= {"showgrid": False, "ticks": ""}
        plots.append(_plot(panel, _figure([trace.to_plotly_json()], layout), 230))
    scale = ("-1", "1", data.unit)
    return Chart(_id(data), data.title, data.note, plots, scale=scale, narrow=True)


# Traces


def _line(line: Line, data: CurveFigure, hovered: bool = False) -> Iterator[Figure]:
    """The interval as a band, or few seeds as thin lines, and above them the mean, which says its interval in words.

    With `hovered`, the band is shown only while the pointer is on the line: many bands would hide one another.
    """
    key, curve, colour = line.key, line.curve, line.key.look.colour
    says, form = Y_SAYS[data.y.quantity]
    seeds = few_seeds(curve)
    keep = np.unique(np.linspace(0, len(curve.x) - 1, min(len(curve.x), MOST_POINTS)).round().astype(int))
    x, intervals = curve.x[keep], [""] * len(keep)
    if curve.low is not None and curve.high is not None:
        low, high = curve.low[keep], curve.high[keep]
        intervals = [f" [{form.format(a)}, {form.format(b)}]" for a, b in zip(low, high, strict=True)]
        if seeds is None:
            outline = [*x, *x[::-1]], [*low, *high[::-1]]
            band = "hovered" if hovered else None
            yield _scatter(
                key, *outline, mode="none", fill="toself", fillcolor=faded(colour, BAND), hoverinfo="skip", meta=band
            )
    if seeds is not None:
        thin = {"color": faded(colour, FAINT), "dash": dash(key), "width": 1}
        gap = [math.nan]  # one trace has the lines of all seeds, with gaps between them
        yield _scatter(
            key,
            [step for _ in seeds for step in [*x, *gap]],
            [value for seed in seeds for value in [*seed[keep], *gap]],
            mode="lines",
            line=thin,
            hoverinfo="skip",
        )
    yield _scatter(
        key,
        x,
        curve.mean[keep],
        f"<b>%{{fullData.name}}</b><br>{says}%{{customdata}}<br>{X_SAYS[data.x.quantity]}",
        mode="lines" if len(x) > 1 else "markers",  # a line of one point would not be seen
        line={"color": colour, "dash": dash(key), "width": 1 if colour == GREY else 2},
        marker={"color": colour},
        customdata=intervals,
    )
    if line.end is not None and data.last is not None:
        yield _end(key, line.end, data.last)


def _end(key: Key, value: float, last: float) -> Figure:
    """The value after training: a marker behind the end of the curve."""
    return _scatter(
        key,
        [END * last],
        [value],
        "<b>%{fullData.name}</b><br>return %{y:.1f} in the final evaluation",
        mode="markers",
        marker={"color": key.look.colour, "symbol": "triangle-right", "size": 8},
    )


def _point(point: Point, upright: bool = False) -> Iterator[Figure]:
    """The values of single seeds as dots, and the estimate with its interval: along a row, or `upright`."""
    key, colour, value = point.key, point.key.look.colour, point.estimate.value
    if point.seeds:
        yield _scatter(
            key,
            point.seeds.values(),
            [point.place - RAISED] * len(point.seeds),
            "%{fullData.name}, seed %{customdata}<br>return %{x:.1f}",
            mode="markers",
            marker={"color": faded(colour, FAINT), "size": 5},
            customdata=list(point.seeds),
        )
    error: Figure = {}
    if point.estimate.interval is not None:
        low, high = point.estimate.interval
        lengths = {"array": _numbers([high - value]), "arrayminus": _numbers([value - low])}
        along = "error_y" if upright else "error_x"
        error = {along: {"type": "data", "symmetric": False, "width": 0, "thickness": 2, **lengths}}
    outline = {"width": 2 if key.blind else 0, "color": colour}
    yield _scatter(
        key,
        [point.place if upright else value],
        [value if upright else point.place],
        f"<b>%{{fullData.name}}</b><br>{point.says}".replace("\n", "<br>"),
        mode="markers",
        marker={"color": colour, "symbol": "circle-open" if key.blind else "circle", "size": 9, "line": outline},
        **error,
    )


def _scatter(key: Key, x: Iterable[float], y: Iterable[float], says: str = "", **options: Any) -> Figure:
    """A trace of a method or a task. `says` is shown where the pointer is; `options` are those of plotly.js."""
    hover = {"hovertemplate": f"{says}<extra></extra>"} if says else {}
    trace = go.Scatter(x=_numbers(x), y=_numbers(y), name=_text(key.name), legendgroup=key.id, **hover, **options)
    found: Figure = trace.to_plotly_json()
    return found


# Layout


def _plot(panel: Panel, figure: Figure, height: int = HEIGHT) -> Plot:
    return Plot(panel.title, figure, height, "" if panel.key is None else panel.key.id)


def _figure(traces: Sequence[Figure], layout: Figure) -> Figure:
    return {"data": traces, "layout": go.Layout(layout).to_plotly_json()}  # go.Layout checks the layout


def _layout(x: Figure, y: Figure, mark: float | None = None, on: str = "") -> Figure:
    """Two axes, and a dotted line at `mark` on the axis `on`, which is "x" or "y"."""
    layout: Figure = {"xaxis": _titled(x), "yaxis": _titled(y)}
    if mark is not None:
        across = "x" if on == "y" else "y"
        ends = {f"{on}0": mark, f"{on}1": mark, f"{across}0": 0, f"{across}1": 1, f"{across}ref": "paper"}
        layout["shapes"] = [{"type": "line", **ends, "line": {"color": "#888888", "width": 1, "dash": "dot"}}]
    return layout


def _ticks(data: CurveFigure) -> Figure:
    """Ticks on an axis of steps, the last of which is at the last step."""
    if data.x.quantity != "steps" or data.last is None:
        return {}
    steps = [data.last * share / 3 for share in range(4)]
    span = {"range": [0, BEYOND * data.last], "rangemode": "normal"}
    return span | {"tickvals": _numbers(steps), "ticktext": list(map(thousands, steps))}


def _axis(axis: Axis) -> Figure:
    found: Figure = {"title": axis.label}
    if axis.quantity == "steps":
        found |= {"tickformat": "~s", "rangemode": "tozero"}
    if axis.quantity == "share":
        found |= {"tickformat": ".0%", "range": [-0.03, 1.03]}
    if axis.limits is not None:
        found["range"] = list(axis.limits)
    return found


def _titled(axis: Figure) -> Figure:
    return {**axis, "title": {"text": axis["title"]}} if "title" in axis else dict(axis)


# Words


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Values for JSON, rounded to six digits, which is finer than a plot can show; NaN and infinity become None."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _text(name: str) -> str:
    """A name for plotly.js, which reads some HTML in every text."""
    return html.escape(name, quote=False)


def _in_lines(name: str) -> list[str]:
    """A name in one or two lines that have room beside a plot on a phone. It breaks at a space or after `_` or `-`."""
    lines = [""]
    for part in re.split(r"(?<=[_-])(?=.)| (?=\()", name):
        if len(lines) == 1 and lines[0] and len(lines[0] + part) >= LONGEST:
            lines.append("")
        lines[-1] += " " + part if part.startswith("(") and lines[-1] else part
    return [line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for line in lines]


def _id(data: FigureData) -> str:
    return data.name.replace("_", "-")
