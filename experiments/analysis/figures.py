"""The figures of a comparison as data: what each of them shows, in which panels, under which caption.

Two renderers draw this data: `experiments.analysis.plots` with Matplotlib, as PNG and SVG, and
`experiments.analysis.report.charts` for plotly.js, in the report. To add a figure, add a function to `FIGURES`; the
renderers know the four classes of figures in `figure_data.py` and need a change only for a new class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from experiments.analysis.arrays import Array
from experiments.analysis.comparison import MEAN, THRESHOLDS, WORST, Analysis, Result
from experiments.analysis.figure_data import (
    SOLVED,
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
from experiments.analysis.intervals import Estimate
from experiments.analysis.looks import label, mean_note, method_look, seeds_note, task_look, variants
from experiments.analysis.measures import performance_profile
from experiments.analysis.replicates import BINS, Curve, Method

LOWEST = -300
"""Return below which learning curves are cut off. A random policy reaches about -200; returns far below that say little
more."""

STEPS_LABEL = "environment steps (all tasks)"
SOLVED_NOTE = f"Dotted line: the return that counts as solved ({SOLVED})."
PROFILE_POINTS = 301
NEVER = 1.12  # where "never" is drawn on an axis of steps, relative to the last step
SHIFT = 0.17  # distance of a variant from the middle of its row
SPREAD = 1.035  # factor between the abscissae of two networks of equal size, which would otherwise hide one another


def method_keys(analysis: Analysis) -> list[Key]:
    """The legend of methods."""
    return [
        Key(f"m{index}", method.name, method_look(method), method.blind)
        for index, method in enumerate(analysis.methods)
    ]


def colour_limit(matrices: Sequence[Array]) -> float:
    """The number that has the strongest colour in heat maps: the largest absolute value, and at least 0.01."""
    return max(0.01, *(float(np.nanmax(np.abs(matrix))) for matrix in matrices))


def learning_curves(analysis: Analysis, minutes: bool = False) -> CurveFigure | None:
    """Greedy return against environment steps or minutes of training: a panel per variant and task."""
    drawn = [m for m in analysis.methods if any(m.learning_curve(task, minutes) for task in m.tasks)]
    if not drawn:
        return None
    panels = [
        Panel(
            f"{task}, {variant}",
            [
                Line(_key(analysis, method), label(method, drawn, method.family), curve)
                for method in methods
                if (curve := method.learning_curve(task, minutes)) is not None
            ],
            variant=variant,
        )
        for variant, methods in variants(analysis).items()
        for task in analysis.tasks
    ]
    curves = [line.curve for panel in panels for line in panel.lines]
    lows = [float((curve.mean if curve.low is None else curve.low).min()) for curve in curves]
    highs = [float((curve.mean if curve.high is None else curve.high).max()) for curve in curves]
    low, high = _with_margin([SOLVED, *lows], [SOLVED, *highs])
    cut = f" Curves are cut off at {LOWEST}." if low < LOWEST else ""
    return CurveFigure(
        name="learning_curves_time" if minutes else "learning_curves",
        title="Learning curves",
        note=f"Greedy return per episode, {mean_note(drawn)}. {SOLVED_NOTE}{cut}",
        panels=panels,
        x=Axis("minutes of training", "minutes") if minutes else Axis(STEPS_LABEL, "steps"),
        y=Axis("greedy return per episode", "return", (max(low, LOWEST), high), solved=True),
        panel_per="task and variant",
        against="wall time" if minutes else "environment steps",
    )


def learning_curves_time(analysis: Analysis) -> CurveFigure | None:
    """Greedy return against minutes of training."""
    return learning_curves(analysis, minutes=True)


def final_returns(analysis: Analysis) -> RowFigure:
    """Return after training: a panel for each task, for the mean over tasks, and for the worst task."""
    panels = []
    for name in (*analysis.tasks, MEAN, WORST):
        points = []
        for result in analysis.results:
            if (found := result.returns(name)) is not None:
                estimate, values = found
                dots = dict(zip(result.method.seeds, values.tolist(), strict=True)) if len(values) > 1 else {}
                points.append(_row(analysis, result, estimate, f"return {_shown(estimate)}", dots))
        panels.append(Panel(name, points=points))
    ends = [end for result in analysis.results for end in _ends(result)]
    dots_note = "" if analysis.all_one_seed else " Small dots: single seeds."
    return RowFigure(
        name="final_returns",
        title="Final returns",
        note=f"Return per episode after training, {mean_note(analysis.methods)}.{dots_note} {SOLVED_NOTE}",
        panels=panels,
        x=Axis("return per episode", "return", _with_margin([SOLVED, *ends], [SOLVED, *ends]), solved=True),
        rows=_row_names(analysis),
        both_variants=len(variants(analysis)) > 1,
    )


def _ends(result: Result) -> Iterator[float]:
    """The returns of a method that have to be inside a plot: each score and the ends of all intervals."""
    yield from result.method.scores.flat
    for estimate in (*result.mean.tasks, result.mean.overall, result.mean.worst):
        yield from estimate.interval or ()


def performance_profiles(analysis: Analysis) -> CurveFigure:
    """Share of all seeds and tasks whose return is above a number: a panel per variant."""
    scores = [method.scores for method in analysis.methods]
    ends = _with_margin([float(each.min()) for each in scores], [float(each.max()) for each in scores])
    thresholds = np.linspace(*ends, PROFILE_POINTS)
    panels = []
    for variant, methods in variants(analysis).items():
        lines = []
        for method in methods:
            profile = performance_profile(method.scores, thresholds)
            curve = Curve(thresholds, profile.share, profile.low, profile.high)
            lines.append(Line(_key(analysis, method), label(method, analysis.methods, method.family), curve))
        panels.append(Panel(variant, lines, variant=variant))
    note = "Share of seeds and tasks whose return is above the value on the horizontal axis; higher is better."
    return CurveFigure(
        name="performance_profiles",
        title="Performance profiles",
        note=f"{note} {_seeds(analysis.methods)}. {SOLVED_NOTE}",
        panels=panels,
        x=Axis("return per episode", "return", solved=True),
        y=Axis("share of seeds and tasks above", "share"),
        panel_per="variant",
        band_note="" if analysis.all_one_seed else "Bands: 95 % intervals.",
    )


def sample_efficiency(analysis: Analysis) -> RowFigure | None:
    """Environment steps until the return, averaged over tasks, reached a number: a panel per number."""
    results = [result for result in analysis.results if result.steps_to]
    if not results:
        return None
    last = max(float(x[-1]) for result in results for x, _ in result.method.mean_return_curves())
    last = max(last, 1.0)
    panels = []
    for threshold in THRESHOLDS:
        points = []
        for result in results:
            found = result.steps_to[threshold]
            value, interval = found.median.value, found.median.interval
            says = "never" if value == math.inf else f"after {value:,.0f} steps"
            if interval is not None:
                says += " [{}, {}]".format(*("never" if end == math.inf else f"{end:,.0f}" for end in interval))
            says += f"\nreached by {found.reached} of {found.seeds} seeds"
            never = NEVER * last
            shown = Estimate(min(value, never), interval and (min(interval[0], never), min(interval[1], never)))
            reached = f"{found.reached}/{found.seeds}" if 0 < found.reached < found.seeds else ""
            points.append(_row(analysis, result, shown, says, reached=reached))
        panels.append(Panel(f"to a return of {threshold}", points=points))
    note = "Environment steps until the greedy return, averaged over tasks, first reached a number."
    seeds = seeds_note([result.method for result in results])
    how = "One seed." if seeds == "one seed" else f"Median over {seeds}, with 95 % intervals from 6 seeds on."
    return RowFigure(
        name="sample_efficiency",
        title="Sample efficiency",
        note=f"{note} {how}",
        panels=panels,
        x=Axis(STEPS_LABEL, "steps"),
        rows=_row_names(analysis),
        both_variants=len(variants(analysis)) > 1,
        last=last,
    )


def parameter_efficiency(analysis: Analysis) -> SizeFigure | None:
    """Return after training, averaged over tasks, against the number of parameters: a panel per variant."""
    known = {result.method.name: result for result in analysis.results if result.parameters}
    if not known:
        return None
    panels, all_sizes = [], []
    for variant, methods in variants(analysis).items():
        sizes = {method: known[method.name].parameters or 0 for method in methods if method.name in known}
        points = []
        for method, size in sizes.items():
            alike = [other for other in sizes if sizes[other] == size]
            place = size * SPREAD ** (alike.index(method) - (len(alike) - 1) / 2)
            estimate = known[method.name].mean.overall
            says = f"return {_shown(estimate)}\n{size:,} parameters"
            name = label(method, analysis.methods, method.family)
            points.append(Point(_key(analysis, method), name, estimate, place, says))
        panels.append(Panel(variant, points=points, variant=variant))
        all_sizes.append(sorted(set(sizes.values())))
    note = f"Return per episode after training against the size of the network, {mean_note(analysis.methods)}."
    return SizeFigure(
        name="parameter_efficiency",
        title="Parameter efficiency",
        note=f"{note} Networks of equal size are drawn side by side.",
        panels=panels,
        sizes=all_sizes,
        y=Axis("return per episode, mean over tasks", "return"),
    )


def task_weights(analysis: Analysis) -> CurveFigure | None:
    """Learned coefficients of the task gradients during training: a panel per method, a line per task."""
    methods = [method for method in analysis.methods if method.learns_weights]
    axis = Axis("coefficient of gradient", "coefficient")
    note = f"Learned coefficients of the task gradients, averaged over every 1/{BINS} of training"
    return _curves_per_method(analysis, methods, Method.weight_curve, axis, "task_weights", "Task weights", note)


def rgb_angles(analysis: Analysis) -> CurveFigure | None:
    """Angles by which RGB rotates the task gradients: a panel per method, a line per task."""
    methods = [method for method in analysis.methods if any(map(method.angle_curve, method.tasks))]
    axis = Axis("rotation (rad)", "rotation")
    note = f"Angles by which RGB rotates the task gradients, averaged over every 1/{BINS} of training"
    return _curves_per_method(analysis, methods, Method.angle_curve, axis, "rgb_angles", "RGB angles", note)


def _curves_per_method(
    analysis: Analysis,
    methods: Sequence[Method],
    find: Callable[[Method, str], Curve | None],
    y: Axis,
    name: str,
    title: str,
    note: str,
) -> CurveFigure | None:
    if not methods:
        return None
    keys = [Key(f"t{index}", task, task_look(index)) for index, task in enumerate(analysis.tasks)]
    panels = [
        Panel(
            label(method, methods),
            [
                Line(key, key.name, curve)
                for key in keys
                if key.name in method.tasks and (curve := find(method, key.name)) is not None
            ],
            key=_key(analysis, method),
        )
        for method in methods
    ]
    note = f"{note}; {mean_note(methods)}."
    return CurveFigure(name, title, note, panels, Axis(STEPS_LABEL, "steps"), y, "method", keys=keys)


def conflicts(analysis: Analysis) -> MatrixFigure | None:
    """Cosines between task gradients, averaged over training: a heat map per method."""
    matrices = {method: cosines for method in analysis.methods if (cosines := method.mean_cosines()) is not None}
    for cosines in matrices.values():
        np.fill_diagonal(cosines, np.nan)  # always 1, which says nothing
    if not matrices:
        return None
    return MatrixFigure(
        name="conflicts",
        title="Gradient conflicts",
        note="Cosine between the gradients of two tasks, mean over training; where it is below 0, they conflict. "
        f"{_seeds(list(matrices))}.",
        panels=_matrix_panels(analysis, matrices),
        limit=colour_limit(list(matrices.values())),
        unit="mean cosine",
        says="{row} and {column}: {value}",
    )


def aim_thresholds(analysis: Analysis) -> MatrixFigure | None:
    """AIM's thresholds at the end of training: a heat map per method."""
    matrices = {method: tau for method in analysis.methods if (tau := method.thresholds()) is not None}
    if not matrices:
        return None
    return MatrixFigure(
        name="aim_thresholds",
        title="AIM thresholds",
        note="Thresholds after training: where the cosine of two gradients is below tau, the gradient of the task in "
        f"the row gives way to that of the task in the column. {_seeds(list(matrices))}.",
        panels=_matrix_panels(analysis, matrices),
        limit=colour_limit(list(matrices.values())),
        unit="tau (a cosine)",
        says="{row} gives way to {column}\nbelow a cosine of {value}",
        x="gives way to",
        y="gradient of",
    )


def _matrix_panels(analysis: Analysis, matrices: Mapping[Method, Array]) -> list[Panel]:
    return [
        Panel(label(method, list(matrices)), matrix=matrix, tasks=method.tasks, key=_key(analysis, method))
        for method, matrix in matrices.items()
    ]


FIGURES: dict[str, Callable[[Analysis], FigureData | None]] = {  # None where there is nothing to draw
    "learning_curves": learning_curves,
    "learning_curves_time": learning_curves_time,
    "final_returns": final_returns,
    "performance_profiles": performance_profiles,
    "sample_efficiency": sample_efficiency,
    "parameter_efficiency": parameter_efficiency,
    "task_weights": task_weights,
    "conflicts": conflicts,
    "aim_thresholds": aim_thresholds,
    "rgb_angles": rgb_angles,
}
"""Every figure, by the name of its files."""


def _key(analysis: Analysis, method: Method) -> Key:
    return method_keys(analysis)[analysis.methods.index(method)]


def _families(analysis: Analysis) -> list[str]:
    """Names of methods without their variants, in order."""
    return list(dict.fromkeys(method.family for method in analysis.methods))


def _row_names(analysis: Analysis) -> list[str]:
    """Names of rows: with the variant only where all methods are of one variant."""
    return _families(analysis) if len(variants(analysis)) > 1 else [method.name for method in analysis.methods]


def _row(
    analysis: Analysis,
    result: Result,
    estimate: Estimate,
    says: str,
    seeds: Mapping[int, float] | None = None,
    reached: str = "",
) -> Point:
    """A point in the row of its method, with the blind variant a little below the aware one."""
    method = result.method
    shift = SHIFT if len(variants(analysis)) > 1 else 0.0
    place = _families(analysis).index(method.family) + (shift if method.blind else -shift)
    return Point(_key(analysis, method), method.name, estimate, place, says, seeds or {}, reached)


def _with_margin(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    low, high = min(lows), max(highs)
    margin = max(0.05 * (high - low), 1.0)
    return low - margin, high + margin


def _shown(estimate: Estimate) -> str:
    interval = "" if estimate.interval is None else " [{:.1f}, {:.1f}]".format(*estimate.interval)
    return f"{estimate.value:.1f}{interval}"


def _seeds(methods: Sequence[Method]) -> str:
    """The number of seeds as the beginning of a sentence."""
    note = seeds_note(methods)
    return note[0].upper() + note[1:]
