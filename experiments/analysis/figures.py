"""The figures of a comparison as data: what each of them shows, in which panels, under which caption.

Two renderers draw this data: `experiments.analysis.plots` with Matplotlib, as PNG and SVG, and
`experiments.analysis.report.charts` for plotly.js, in the report. To add a figure, add a function to `FIGURES`; the
renderers know the four classes of figures in `figure_data.py` and need a change only for a new class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from experiments.analysis.balancer_figures import aim_thresholds, conflicts, rgb_angles, task_weights, weight_profile
from experiments.analysis.comparison import MEAN, WORST, Analysis, Result
from experiments.analysis.figure_data import (
    Axis,
    CurveFigure,
    FigureData,
    Line,
    Panel,
    Point,
    RowFigure,
    SizeFigure,
)
from experiments.analysis.figure_parts import (
    STEPS_LABEL,
    in_words,
    key_of,
    last_step_of,
    row_names,
    row_point,
    seeds_sentence,
    with_margin,
)
from experiments.analysis.goals import common, goal_name, goals_of, mark_note
from experiments.analysis.intervals import Estimate
from experiments.analysis.looks import (
    GREY,
    Look,
    curves_note,
    label,
    mean_note,
    seeds_note,
    variants,
)
from experiments.analysis.measures import performance_profile
from experiments.analysis.replicates import Curve, Method

LOWEST = -1.5
"""Returns below this many times the return that counts as solved are cut off in learning curves: how far below says
little. A random lander reaches about -200, and lands at 200."""

PROFILE_POINTS = 301
NEVER = 1.12  # where "never" is drawn on an axis of steps, relative to the last step
SPREAD, WIDEST = 0.09, 0.8  # distance of two networks of equal size, and of the first and the last of them, at most
MOST_COLOURED = 6  # curves of a panel that have a colour: the baseline and the best others; the rest are grey


def learning_curves(analysis: Analysis) -> CurveFigure | None:
    """Greedy return against environment steps: a panel per variant and task."""
    drawn = [m for m in analysis.methods if any(m.learning_curve(task) for task in m.tasks)]
    if not drawn:
        return None
    tasks = [task for _ in variants(analysis) for task in analysis.tasks]
    panels = [
        Panel(
            f"{task}, {variant}",
            _returns_on(analysis, task, methods, drawn),
            variant=variant,
            mark=analysis.solved[task],
        )
        for variant, methods in variants(analysis).items()
        for task in analysis.tasks
    ]
    lines = [line for panel in panels for line in panel.lines]
    limits, lowest = _limits_of_curves(lines, analysis.solved.values())
    if limits is None or _have_scales_of_their_own(analysis):
        limits, lowest, found = None, None, []
        for panel, task in zip(panels, tasks, strict=True):
            of_task = [line for other, of in zip(panels, tasks, strict=True) if of == task for line in other.lines]
            own, cut = _limits_of_curves(of_task, [analysis.solved[task]])
            found.append(replace(panel, limits=own))
            lowest = cut if lowest is None else lowest
        panels = found
    cut_note = "" if lowest is None else f" Curves are cut off at {lowest:g}."
    if lowest is not None and limits is None:
        cut_note = " Curves are cut off where they are far below what counts as solved."
    return CurveFigure(
        name="learning_curves",
        title="Learning curves",
        note=f"Greedy return per episode, {curves_note(drawn)}. Markers at the end: the final evaluation, as in the "
        f"tables. {mark_note(analysis.solved)}{cut_note}{_grey_note(panels)}".strip(),
        panels=panels,
        x=Axis(STEPS_LABEL, "steps"),
        y=Axis("greedy return per episode", "return", limits),
        panel_per="task and variant",
        last=last_step_of(drawn),
    )


def _have_scales_of_their_own(analysis: Analysis) -> bool:
    """Whether returns of different tasks are of different sizes, as far as what counts as solved tells."""
    return len(set(analysis.solved.values())) > 1


def _limits_of_curves(
    lines: Sequence[Line], marks: Iterable[float | None]
) -> tuple[tuple[float, float] | None, float | None]:
    """Limits of an axis of returns, and where low returns are cut off, if they are; no limits without returns.

    The axis reaches as far as returns do: intervals of few seeds reach beyond what is possible.
    """
    values = [(line.curve.mean if line.curve.seeds is None else line.curve.seeds).ravel() for line in lines]
    if not values:
        return None, None
    thresholds = [mark for mark in marks if mark is not None]
    ends = [*thresholds, *(line.end for line in lines if line.end is not None)]
    ends += [float(end(of_line)) for of_line in values for end in (np.min, np.max)]
    low, high = _with_margin(ends)
    lowest = LOWEST * max(thresholds, default=0.0)
    return ((lowest, high), lowest) if low < lowest < 0 else ((low, high), None)


def _with_margin(ends: Sequence[float]) -> tuple[float, float]:
    """The limits of an axis that holds all these returns, of whatever size they are."""
    return with_margin(ends, ends, least=min(1.0, 0.05 * max(map(abs, ends)) or 1.0))


def _returns_on(analysis: Analysis, task: str, methods: Sequence[Method], drawn: Sequence[Method]) -> list[Line]:
    """The curves of methods of one variant on one task, the best method last."""
    lines = []
    for result in _worst_first(analysis, methods):
        method = result.method
        curve = method.learning_curve(task)
        if curve is not None:
            name, found = label(method, drawn, method.family), result.returns(task)
            end = None if found is None else found[0].value
            lines.append(Line(key_of(analysis, method), name, curve, end))
    return _few_in_colour(analysis, methods, lines)


def _worst_first(analysis: Analysis, methods: Collection[Method]) -> list[Result]:
    """The results of these methods, so that the lines of good methods are drawn above those of bad ones."""
    return sorted((r for r in analysis.results if r.method in methods), key=lambda r: r.mean.overall.value)


def _few_in_colour(analysis: Analysis, methods: Collection[Method], lines: Sequence[Line]) -> list[Line]:
    """The lines of the baseline and of the best methods as they are, above those of all others in grey."""
    best_last = sorted(_worst_first(analysis, methods), key=lambda result: result.baseline is None)
    coloured = {result.method.name for result in best_last[-MOST_COLOURED:]}
    above = [line for line in lines if line.key.name in coloured]
    return [*(_in_grey(line) for line in lines if line not in above), *above]


def _in_grey(line: Line) -> Line:
    """The line of a method that is drawn for comparison only, without its interval."""
    curve = replace(line.curve, low=None, high=None, seeds=None)
    return Line(replace(line.key, look=Look(GREY)), "others", curve, line.end)


def _grey_note(panels: Iterable[Panel]) -> str:
    grey = any(line.key.look.colour == GREY for panel in panels for line in panel.lines)
    return " Grey: the other methods." if grey else ""


def final_returns(analysis: Analysis) -> RowFigure:
    """Return after training: a panel for each task, for the mean over tasks, and for the worst task."""
    panels = []
    names = {result.baseline for result in analysis.results}
    baselines = {result.method.name: result for result in analysis.results if result.method.name in names}
    for name in (*analysis.tasks, MEAN, WORST):
        points = []
        for result in analysis.results:
            if (found := result.returns(name)) is not None:
                estimate, values = found
                dots = dict(zip(result.method.seeds, values.tolist(), strict=True)) if len(values) > 1 else {}
                points.append(row_point(analysis, result, estimate, f"return {in_words(estimate)}", dots))
        lines = {r.method.variant: found[0].value for r in baselines.values() if (found := r.returns(name))}
        mark = analysis.solved.get(name, common(analysis.solved))
        panels.append(Panel(name, points=points, baselines=lines, mark=mark))
    ends = [end for result in analysis.results for end in _ends(result)]
    limits = None
    if _have_scales_of_their_own(analysis):
        panels = [replace(panel, limits=_limits_of_points(panel)) for panel in panels]
    else:
        marks = [mark for mark in (common(analysis.solved),) if mark is not None]
        limits = with_margin([*marks, *ends], [*marks, *ends])
    dots_note = "" if analysis.all_one_seed else " Small dots: single seeds."
    return RowFigure(
        name="final_returns",
        title="Final returns",
        note=f"Return per episode after training, {mean_note(analysis.methods)}, the best method first."
        f"{dots_note}{_baseline_note(baselines)} {mark_note(analysis.solved)}".strip(),
        panels=panels,
        x=Axis("return per episode", "return", limits),
        rows=row_names(analysis),
        both_variants=len(variants(analysis)) > 1,
    )


def _limits_of_points(panel: Panel) -> tuple[float, float] | None:
    """The limits of the axis of one panel, which hold its points, intervals and lines."""
    ends = [end for point in panel.points for end in (point.estimate.value, *(point.estimate.interval or ()))]
    ends += [value for point in panel.points for value in point.seeds.values()]
    ends += [*panel.baselines.values(), *([] if panel.mark is None else [panel.mark])]
    return _with_margin(ends) if ends else None


def _baseline_note(baselines: Collection[str]) -> str:
    return f" Lines: the baseline, {' and '.join(baselines)}." if baselines else ""


def _ends(result: Result) -> Iterator[float]:
    """The returns of a method that have to be inside a plot: each score and the ends of all intervals."""
    yield from result.method.scores.flat
    for estimate in (*result.mean.tasks, result.mean.overall, result.mean.worst):
        yield from estimate.interval or ()


def performance_profiles(analysis: Analysis) -> CurveFigure:
    """Share of all seeds and tasks whose return is above a number: a panel per variant."""
    scores = [method.scores for method in analysis.methods]
    ends = with_margin([float(each.min()) for each in scores], [float(each.max()) for each in scores])
    thresholds = np.linspace(*ends, PROFILE_POINTS)
    panels = []
    for variant, methods in variants(analysis).items():
        lines = []
        for method in (result.method for result in _worst_first(analysis, methods)):
            profile = performance_profile(method.scores, thresholds)
            curve = Curve(thresholds, profile.share, profile.low, profile.high)
            lines.append(Line(key_of(analysis, method), label(method, analysis.methods, method.family), curve))
        lines = _few_in_colour(analysis, methods, lines)
        panels.append(Panel(variant, lines, variant=variant, mark=common(analysis.solved)))
    mark = mark_note(analysis.solved) if common(analysis.solved) is not None else ""
    note = "Share of seeds and tasks whose return is above the value on the horizontal axis; higher is better."
    return CurveFigure(
        name="performance_profiles",
        title="Performance profiles",
        note=f"{note} {seeds_sentence(analysis.methods)}. {mark}".strip() + _grey_note(panels),
        panels=panels,
        x=Axis("return per episode", "return"),
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
    for goal in goals_of(analysis.solved):
        points = []
        for result in results:
            found = result.steps_to.get(goal)
            if found is None:
                continue
            value, interval = found.median.value, found.median.interval
            says = "never" if value == math.inf else f"after {value:,.0f} steps"
            if interval is not None:
                says += " [{}, {}]".format(*("never" if end == math.inf else f"{end:,.0f}" for end in interval))
            says += f"\nreached by {found.reached} of {found.seeds} seeds"
            never = NEVER * last
            shown = Estimate(min(value, never), interval and (min(interval[0], never), min(interval[1], never)))
            reached = f"{found.reached}/{found.seeds}" if 0 < found.reached < found.seeds else ""
            points.append(row_point(analysis, result, shown, says, reached=reached))
        title = "to solve every task" if goal == "solved" else f"to a return of {goal_name(goal)}"
        panels.append(Panel(title, points=points))
    note = "Environment steps until the greedy return, averaged over tasks, first reached a number."
    if "solved" in goals_of(analysis.solved):
        note = "Environment steps until the greedy return first reached what counts as solved in all tasks at once."
    seeds = seeds_note([result.method for result in results])
    how = "One seed." if seeds == "one seed" else f"Median over {seeds}, with 95 % intervals from 6 seeds on."
    return RowFigure(
        name="sample_efficiency",
        title="Sample efficiency",
        note=f"{note} {how} Measured at the evaluations that all methods have in common.",
        panels=panels,
        x=Axis(STEPS_LABEL, "steps"),
        rows=row_names(analysis),
        both_variants=len(variants(analysis)) > 1,
        last=last,
    )


def parameter_efficiency(analysis: Analysis) -> SizeFigure | None:
    """Return after training, averaged over tasks, against the number of parameters: a panel per variant."""
    known = {result.method.name: result for result in analysis.results if result.parameters}
    if not known:
        return None
    sizes = sorted({result.parameters or 0 for result in known.values()})
    panels = []
    for variant, methods in variants(analysis).items():
        there = [method for method in methods if method.name in known]
        points = []
        for method in there:
            size = known[method.name].parameters or 0
            alike = [other for other in there if known[other.name].parameters == size]
            spread = min(SPREAD, WIDEST / len(alike))
            place = sizes.index(size) + spread * (alike.index(method) - (len(alike) - 1) / 2)
            estimate = known[method.name].mean.overall
            says = f"return {in_words(estimate)}\n{size:,} parameters"
            name = label(method, analysis.methods, method.family)
            points.append(Point(key_of(analysis, method), name, estimate, place, says))
        panels.append(Panel(variant, points=points, variant=variant))
    note = f"Return per episode after training by the size of the network, {mean_note(analysis.methods)}."
    return SizeFigure(
        name="parameter_efficiency",
        title="Parameter efficiency",
        note=f"{note} Networks of equal size are drawn side by side.",
        panels=panels,
        sizes=sizes,
        y=Axis("return per episode, mean over tasks", "return"),
    )


FIGURES: dict[str, Callable[[Analysis], FigureData | None]] = {  # None where there is nothing to draw
    "final_returns": final_returns,
    "learning_curves": learning_curves,
    "performance_profiles": performance_profiles,
    "sample_efficiency": sample_efficiency,
    "parameter_efficiency": parameter_efficiency,
    "task_weights": task_weights,
    "weight_profile": weight_profile,
    "conflicts": conflicts,
    "aim_thresholds": aim_thresholds,
    "rgb_angles": rgb_angles,
}
"""Every figure, by the name of its files."""
