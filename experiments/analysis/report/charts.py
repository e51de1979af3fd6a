"""The interactive figures of the report: those of `experiments.analysis.plots`, as data for plotly.js."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from experiments.analysis.comparison import MEAN, THRESHOLDS, WORST, Analysis, Result
from experiments.analysis.intervals import Estimate
from experiments.analysis.measures import performance_profile
from experiments.analysis.plots.learning import LOWEST
from experiments.analysis.plots.style import (
    DIVERGING,
    SOLVED,
    STEPS_LABEL,
    colour,
    colour_limit,
    families,
    label,
    mean_note,
    seeds_note,
    task_style,
    variants,
)
from experiments.analysis.replicates import BINS, Curve, Method

Array = NDArray[np.float64]
Figure = dict[str, Any]  # `data` and `layout` of plotly.js

MOST_POINTS = 200  # of a curve: as many as a panel has room for
PROFILE_POINTS = 151
HEIGHT = 300  # of a panel, pixels
ROW = 30  # of a method, where methods are rows
LONGEST = 18  # name beside a row
BAND, FAINT = 0.13, 0.4  # opacities
APART = 1.3  # factor between sizes that are both labelled
SPREAD = 1.035  # factor between the abscissae of two methods with as many parameters
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


@dataclass(frozen=True)
class Key:
    """What a legend shows and switches on and off: a method, or a task."""

    id: str  # the `legendgroup` of its traces
    name: str
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    figure: Figure
    height: int = HEIGHT
    of: str = ""  # id of the one method that it shows


@dataclass(frozen=True)
class Chart:
    """A section of the report: panels of one kind."""

    id: str
    title: str
    note: str
    views: Mapping[str, Sequence[Panel]]  # by what they are drawn against; one of them is shown
    keys: Sequence[Key] = ()  # a legend of its own
    scale: tuple[str, str, str] | None = None  # of a heat map's colours: lowest, highest and what it is
    narrow: bool = False  # whether more than three panels fit side by side


def charts(analysis: Analysis) -> list[Chart]:
    """Every chart that there is data for."""
    makers = (
        *(learning_curves, final_returns, performance_profiles, sample_efficiency, parameter_efficiency),
        *(task_weights, conflicts, aim_thresholds, rgb_angles),
    )
    return [chart for make in makers if (chart := make(analysis)) is not None]


def method_keys(analysis: Analysis) -> list[Key]:
    """The legend of methods: aware ones have solid lines and blind ones dashed lines of the same colour."""
    return [
        Key(f"m{index}", method.name, colour(method), "dash" if method.blind else "solid")
        for index, method in enumerate(analysis.methods)
    ]


def learning_curves(analysis: Analysis) -> Chart | None:
    """Greedy return in training: a panel per variant and task, a line per method; against steps or wall time."""
    drawn = [method for method in analysis.methods if any(map(method.learning_curve, method.tasks))]
    if not drawn:
        return None
    views = {
        "environment steps": _learning_panels(analysis, minutes=False),
        "wall time": _learning_panels(analysis, minutes=True),
    }
    note = f"Greedy return per episode, {mean_note(drawn)}. Dotted: solved ({SOLVED})."
    return Chart("learning-curves", "Learning curves", note, {name: panels for name, panels in views.items() if panels})


def _learning_panels(analysis: Analysis, minutes: bool) -> list[Panel]:
    x = {"title": "minutes of training"} if minutes else _steps_axis()
    at = "after %{x:.1f} minutes" if minutes else "at %{x:.4~s} steps"
    panels, lowest, highest = [], math.inf, -math.inf
    for variant, methods in variants(analysis).items():
        for task in analysis.tasks:
            traces = []
            for method in methods:
                curve = method.learning_curve(task, minutes)
                if curve is not None:
                    traces += _curve(curve, _key(analysis, method), "return %{y:.1f}", at)
                    lowest = min(lowest, float((curve.mean if curve.low is None else curve.low).min()))
                    highest = max(highest, float((curve.mean if curve.high is None else curve.high).max()))
            if traces:
                layout = _layout(x, {"title": "return per episode"}, solved="y")
                panels.append(Panel(f"{task}, {variant}", _figure(traces, layout)))
    margin = 0.05 * (highest - lowest)
    for panel in panels:
        panel.figure["layout"]["yaxis"]["range"] = [max(lowest - margin, LOWEST), highest + margin]
    return panels


def final_returns(analysis: Analysis) -> Chart:
    """Return after training, a row per method; a panel for the mean, the worst task, and each task."""
    ends = [end for result in analysis.results for end in _ends(result)]
    margin = max(0.05 * (max(ends) - min(ends)), 1.0)
    reach = [min(ends) - margin, max(ends) + margin]
    panels = []
    for name in (MEAN, WORST, *analysis.tasks):
        traces = []
        for result in analysis.results:
            if (found := result.returns(name)) is None:
                continue
            (estimate, dots), method = found, result.method
            key, y = _key(analysis, method), _height(analysis, method)
            if len(dots) > 1:
                traces.append(_seeds(key, method, dots, y))
            traces.append(_point(key, estimate, y, method.blind, f"return %{{x:.1f}}{_interval(estimate)}"))
        layout = _layout({"title": "return per episode", "range": reach}, _rows(analysis), solved="x")
        panels.append(Panel(name, _figure(traces, layout), _rows_height(analysis)))
    small = "" if analysis.all_one_seed else " Small dots: seeds."
    note = f"Return per episode after training, {mean_note(analysis.methods)}.{small} {_markers(analysis)}"
    return Chart("final-returns", "Final returns", f"{note} Dotted: solved ({SOLVED}).", {"": panels})


def _ends(result: Result) -> Iterator[float]:
    """Whatever of the method's returns has to be inside a plot."""
    yield from result.method.scores.flat
    for estimate in (*result.mean.tasks, result.mean.overall, result.mean.worst):
        yield from estimate.interval or ()


def performance_profiles(analysis: Analysis) -> Chart:
    """Share of all seeds and tasks whose return is above a number: a panel per variant, a line per method."""
    lowest = min(float(method.scores.min()) for method in analysis.methods)
    highest = max(float(method.scores.max()) for method in analysis.methods)
    margin = max(0.05 * (highest - lowest), 1.0)
    thresholds = np.linspace(lowest - margin, highest + margin, PROFILE_POINTS)
    panels = []
    for variant, methods in variants(analysis).items():
        traces = []
        for method in methods:
            profile = performance_profile(method.scores, thresholds)
            curve = Curve(thresholds, profile.share, profile.low, profile.high)
            traces += _curve(
                curve, _key(analysis, method), "%{y:.0%} of seeds and tasks", "are above %{x:.0f}", "{:.0%}"
            )
        share = {"title": "share above it", "tickformat": ".0%", "range": [-0.03, 1.03]}
        panels.append(Panel(variant, _figure(traces, _layout({"title": "return per episode"}, share, solved="x"))))
    intervals = "" if analysis.all_one_seed else ", 95 % intervals"
    note = (
        f"Share of seeds and tasks whose return is above a number; higher is better. {_of(analysis.methods)}{intervals}"
    )
    return Chart("performance-profiles", "Performance profiles", f"{note}. Dotted: solved ({SOLVED}).", {"": panels})


def sample_efficiency(analysis: Analysis) -> Chart | None:
    """Environment steps until the return averaged over tasks reached a number: a panel per number, a row per method."""
    results = [result for result in analysis.results if result.steps_to]
    if not results:
        return None
    last = max(float(x[-1]) for result in results for x, _ in result.method.mean_return_curves())
    last = max(last, 1.0)
    never = 1.12 * last
    panels = []
    for threshold in THRESHOLDS:
        traces = []
        for result in results:
            found = result.steps_to[threshold]
            value, interval = found.median.value, found.median.interval
            shown = Estimate(min(value, never), interval and (min(interval[0], never), min(interval[1], never)))
            says = "never" if value == math.inf else f"after {value:,.0f} steps"
            if interval is not None:
                says += " [{}, {}]".format(*("never" if end == math.inf else f"{end:,.0f}" for end in interval))
            says += f"<br>reached by {found.reached} of {found.seeds} seeds"
            key, y = _key(analysis, result.method), _height(analysis, result.method)
            traces.append(_point(key, shown, y, result.method.blind, says))
        ticks = [0, last / 2, never]
        names = [f"{last / 2000:,.0f}k" if last >= 4000 else f"{last / 2:,.0f}", "never"]
        x = {"title": "environment steps", "range": [0, 1.24 * last], "tickangle": 0}
        x |= {"tickvals": _numbers(ticks), "ticktext": ["0", *names]}
        layout = _layout(x, _rows(analysis))
        band = {"type": "rect", "x0": 1.05 * last, "x1": 1.24 * last, "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"] = [{**band, "fillcolor": "rgba(128, 128, 128, 0.12)", "line": {"width": 0}, "layer": "below"}]
        panels.append(Panel(f"to a return of {threshold}", _figure(traces, layout), _rows_height(analysis)))
    seeds = _of([result.method for result in results])
    note = "Environment steps until the greedy return, averaged over tasks, first reached a number. "
    note += f"{seeds}." if analysis.all_one_seed else f"{seeds}: their median, with 95 % intervals from 6 seeds on."
    return Chart("sample-efficiency", "Sample efficiency", f"{note} {_markers(analysis)}", {"": panels})


def parameter_efficiency(analysis: Analysis) -> Chart | None:
    """Return after training, averaged over tasks, against the number of parameters: a panel per variant."""
    known = {result.method.name: result for result in analysis.results if result.parameters}
    if not known:
        return None
    all_sizes = [result.parameters or 0 for result in known.values()]
    reach = [math.log10(min(all_sizes)) - 0.15, math.log10(max(all_sizes)) + 0.15]
    panels = []
    for variant, methods in variants(analysis).items():
        traces, sizes = [], {m.name: known[m.name].parameters or 0 for m in methods if m.name in known}
        for method in methods:
            if method.name not in sizes:
                continue
            alike = [name for name, size in sizes.items() if size == sizes[method.name]]
            # Methods of one size would hide one another.
            x = sizes[method.name] * SPREAD ** (alike.index(method.name) - (len(alike) - 1) / 2)
            estimate, key = known[method.name].mean.overall, _key(analysis, method)
            says = f"return %{{y:.1f}}{_interval(estimate)}<br>{sizes[method.name]:,} parameters"
            traces.append(_point(key, estimate, x, method.blind, says, upright=True))
        if traces:
            x_axis = {
                "title": "parameters (equal ones spread)",
                "type": "log",
                "range": reach,
                "tickformat": ".3~s",
                "tickangle": 0,
            }
            x_axis["tickvals"] = _apart(sizes.values())
            layout = _layout(x_axis, {"title": "return, mean over tasks"})
            panels.append(Panel(variant, _figure(traces, layout)))
    note = f"Return per episode after training against the size of the network, {mean_note(analysis.methods)}."
    return Chart("parameter-efficiency", "Parameter efficiency", note, {"": panels})


def task_weights(analysis: Analysis) -> Chart | None:
    """Learned coefficients of the task gradients in training: a panel per method, a line per task."""
    methods = [method for method in analysis.methods if method.learns_weights]
    note = f"Learned coefficients of the task gradients, averages over 1/{BINS} of training"
    return _curves_per_method(analysis, methods, Method.weight_curve, "Task weights", note, "coefficient")


def rgb_angles(analysis: Analysis) -> Chart | None:
    """Angles by which RGB rotates the task gradients: a panel per method, a line per task."""
    methods = [method for method in analysis.methods if any(map(method.angle_curve, method.tasks))]
    note = f"Angles by which RGB rotates the task gradients, averages over 1/{BINS} of training"
    return _curves_per_method(analysis, methods, Method.angle_curve, "RGB angles", note, "rotation (rad)")


def conflicts(analysis: Analysis) -> Chart | None:
    """Cosines between task gradients, averaged over training: a heat map per method."""
    matrices = {method: cosines for method in analysis.methods if (cosines := method.mean_cosines()) is not None}
    for cosines in matrices.values():
        np.fill_diagonal(cosines, np.nan)  # 1, which says nothing
    note = "Cosine between task gradients, mean over training; below 0 they conflict"
    says = "%{y} and %{x}: %{z:.3f}"
    return _heat_maps(analysis, matrices, "Gradient conflicts", note, "mean cosine", says)


def aim_thresholds(analysis: Analysis) -> Chart | None:
    """AIM's thresholds at the end of training: a heat map per method."""
    matrices = {method: tau for method in analysis.methods if (tau := method.thresholds()) is not None}
    note = "The cosine below which the gradient of the row's task gives way to that of the column's, after training"
    says = "%{y} gives way to %{x}<br>below a cosine of %{z:.3f}"
    return _heat_maps(analysis, matrices, "AIM thresholds", note, "tau", says)


def _curves_per_method(
    analysis: Analysis,
    methods: Sequence[Method],
    curve: Callable[[Method, str], Curve | None],
    title: str,
    note: str,
    unit: str,
) -> Chart | None:
    if not methods:
        return None
    keys = []
    for index, task in enumerate(analysis.tasks):
        style = task_style(index)
        keys.append(Key(f"t{index}", task, style["color"], DASHES[style["linestyle"]]))
    panels = []
    for method in methods:
        traces: list[Figure] = []
        for task, key in zip(analysis.tasks, keys, strict=True):
            found = curve(method, task) if task in method.tasks else None
            if found is not None:
                traces += _curve(found, key, f"{unit} %{{y:.3f}}", "at %{x:.4~s} steps", "{:.3f}")
        layout = _layout(_steps_axis(), {"title": unit})
        panels.append(Panel(label(method, methods), _figure(traces, layout), of=_key(analysis, method).id))
    return Chart(_id(title), title, f"{note}, {mean_note(methods)}.", {"": panels}, keys)


def _heat_maps(
    analysis: Analysis, matrices: Mapping[Method, Array], title: str, note: str, unit: str, says: str
) -> Chart | None:
    """Matrices (tasks, tasks) on one scale of colours around 0."""
    if not matrices:
        return None
    limit = colour_limit(matrices.values())
    panels = []
    for method, matrix in matrices.items():
        names = [_text(task) for task in method.tasks]
        trace = go.Heatmap(
            x=names,
            y=names,
            z=[_numbers(row) for row in matrix],
            zmin=-limit,
            zmax=limit,
            colorscale=DIVERGING,
            showscale=False,
            texttemplate="%{z:.2f}",
            hovertemplate=f"{says}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
        )
        layout = _layout({"type": "category"}, {"type": "category", "autorange": "reversed"})
        for axis in ("xaxis", "yaxis"):
            layout[axis] |= {"showgrid": False, "ticks": ""}
        figure = _figure([trace.to_plotly_json()], layout)
        panels.append(Panel(label(method, list(matrices)), figure, 230, _key(analysis, method).id))
    scale = (f"{-limit:.2f}", f"{limit:.2f}", unit)
    return Chart(_id(title), title, f"{note}. {_of(list(matrices))}.", {"": panels}, scale=scale, narrow=True)


# Traces


def _curve(curve: Curve, key: Key, says: str, at: str, form: str = "{:.1f}") -> list[Figure]:
    """The mean as a line that tells its interval, and the interval as a band below it."""
    keep = np.unique(np.linspace(0, len(curve.x) - 1, min(len(curve.x), MOST_POINTS)).round().astype(int))
    x, mean = curve.x[keep], curve.mean[keep]
    traces, intervals = [], [""] * len(x)
    if curve.low is not None and curve.high is not None:
        low, high = curve.low[keep], curve.high[keep]
        intervals = [f" [{form.format(a)}, {form.format(b)}]" for a, b in zip(low, high, strict=True)]
        band = go.Scatter(
            x=_numbers([*x, *x[::-1]]),
            y=_numbers([*low, *high[::-1]]),
            mode="none",
            fill="toself",
            fillcolor=faded(key.colour, BAND),
            hoverinfo="skip",
            legendgroup=key.id,
        )
        traces.append(band)
    line = go.Scatter(
        x=_numbers(x),
        y=_numbers(mean),
        name=_text(key.name),
        mode="lines" if len(x) > 1 else "markers",  # a line would not be seen
        line={"color": key.colour, "dash": key.dash, "width": 2},
        marker={"color": key.colour},
        customdata=intervals,
        hovertemplate=f"<b>%{{fullData.name}}</b><br>{says}%{{customdata}}<br>{at}<extra></extra>",
        legendgroup=key.id,
    )
    return [trace.to_plotly_json() for trace in (*traces, line)]


def _point(key: Key, estimate: Estimate, place: float, blind: bool, says: str, upright: bool = False) -> Figure:
    """An estimate with its interval: along x at height `place`, or `upright` along y; open in the blind variant."""
    along, across = ("y", "x") if upright else ("x", "y")
    error: Figure = {}
    if estimate.interval is not None:
        low, high = estimate.interval
        lengths = {"array": _numbers([high - estimate.value]), "arrayminus": _numbers([estimate.value - low])}
        error = {f"error_{along}": {"type": "data", "symmetric": False, "width": 0, "thickness": 2, **lengths}}
    trace: Figure = go.Scatter(
        **{along: _numbers([estimate.value]), across: _numbers([place])},
        **error,
        name=_text(key.name),
        mode="markers",
        marker={
            "color": key.colour,
            "symbol": "circle-open" if blind else "circle",
            "size": 9,
            "line": {"width": 2 if blind else 0, "color": key.colour},
        },
        hovertemplate=f"<b>%{{fullData.name}}</b><br>{says}<extra></extra>",
        legendgroup=key.id,
    ).to_plotly_json()
    return trace


def _seeds(key: Key, method: Method, dots: Array, y: float) -> Figure:
    """A small dot for each seed."""
    trace: Figure = go.Scatter(
        x=_numbers(dots),
        y=[y] * len(dots),
        name=_text(key.name),
        mode="markers",
        marker={"color": faded(key.colour, FAINT), "size": 5},
        customdata=list(method.seeds),
        hovertemplate="%{fullData.name}, seed %{customdata}<br>return %{x:.1f}<extra></extra>",
        legendgroup=key.id,
    ).to_plotly_json()
    return trace


def faded(colour: str, opacity: float) -> str:
    """`#rrggbb` as a CSS colour that shows what is behind it."""
    red, green, blue = rgb(colour)
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


def rgb(colour: str) -> tuple[int, int, int]:
    """Parts of `#rrggbb`, each from 0 to 255."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


# Layout


def _figure(traces: Sequence[Figure], layout: Figure) -> Figure:
    return {"data": traces, "layout": go.Layout(layout).to_plotly_json()}  # go.Layout checks it


def _layout(x: Figure, y: Figure, solved: str = "") -> Figure:
    """Axes, and the dotted line at the return that counts as solved on the axis `solved`."""
    layout: Figure = {"xaxis": _axis(x), "yaxis": _axis(y)}
    if solved:
        across = "x" if solved == "y" else "y"
        ends = {f"{solved}0": SOLVED, f"{solved}1": SOLVED, f"{across}0": 0, f"{across}1": 1, f"{across}ref": "paper"}
        layout["shapes"] = [{"type": "line", **ends, "line": {"color": "#888888", "width": 1, "dash": "dot"}}]
    return layout


def _axis(axis: Figure) -> Figure:
    return {**axis, "title": {"text": axis["title"]}} if "title" in axis else dict(axis)


def _steps_axis() -> Figure:
    return {"title": STEPS_LABEL, "tickformat": "~s", "rangemode": "tozero"}


def _rows(analysis: Analysis) -> Figure:
    """An axis with a row per method from top to bottom, its variants beside each other."""
    names = families(analysis)
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [_text(_short(name)) for name in names],
        "range": [len(names) - 0.4, -0.6],
        "zeroline": False,
    }


def _rows_height(analysis: Analysis) -> int:
    return 90 + ROW * len(families(analysis))


def _height(analysis: Analysis, method: Method) -> float:
    """The method's row: the blind variant a little below the aware one."""
    shift = 0.18 if len(variants(analysis)) > 1 else 0.0
    return families(analysis).index(method.family) + (shift if method.blind else -shift)


def _apart(sizes: Iterable[int]) -> list[int]:
    """Sizes whose labels do not touch on a logarithmic axis, from the smallest on."""
    chosen: list[int] = []
    for size in sorted(set(sizes)):
        if not chosen or size > APART * chosen[-1]:
            chosen.append(size)
    return chosen


# Words


def _key(analysis: Analysis, method: Method) -> Key:
    return method_keys(analysis)[analysis.methods.index(method)]


def _numbers(values: ArrayLike | Iterable[float]) -> list[float | None]:
    """Values as JSON takes them, to six digits, which is more than can be seen."""

    def rounded() -> Iterator[float | None]:
        for value in np.asarray(values, float):
            yield float(f"{value:.6g}") if math.isfinite(value) else None

    return list(rounded())


def _text(name: str) -> str:
    """A name as plotly.js takes it, which reads some HTML in every text."""
    return html.escape(name, quote=False)


def _short(name: str) -> str:
    """What there is room for beside a plot on a phone."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _interval(estimate: Estimate) -> str:
    return "" if estimate.interval is None else " [{:.1f}, {:.1f}]".format(*estimate.interval)


def _of(methods: Sequence[Method]) -> str:
    note = seeds_note(methods)
    return note[0].upper() + note[1:]


def _markers(analysis: Analysis) -> str:
    return "Filled: aware; open: blind." if len(variants(analysis)) > 1 else ""


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")
