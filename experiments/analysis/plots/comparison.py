"""Methods side by side: final returns, performance profiles, and what they cost in steps and parameters."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.analysis.comparison import MEAN, THRESHOLDS, WORST, Analysis
from experiments.analysis.intervals import Estimate
from experiments.analysis.measures import performance_profile
from experiments.analysis.plots.style import (
    SOLVED,
    STEPS_LABEL,
    colour,
    families,
    handles_of,
    label,
    legend_beside,
    line_style,
    marker,
    mean_note,
    row_names,
    seeds_note,
    title,
    variant_markers,
    variants,
)
from experiments.analysis.replicates import Method

PROFILE_POINTS = 301
MOST_BANDS = 3
SPREAD = 1.035  # factor between the abscissae of two methods with as many parameters


def final_returns(analysis: Analysis) -> Figure:
    """Return after training, a line per method, a panel per task, for the mean and the worst task; seeds as dots."""
    names = [*analysis.tasks, MEAN, WORST]
    figure, panels = _lines_per_method(analysis, len(names))
    for axes, name in zip(panels, names, strict=True):
        for result in analysis.results:
            if (found := result.returns(name)) is None:
                continue
            (estimate, dots), method = found, result.method
            y = _height(analysis, method)
            if len(dots) > 1:
                axes.plot(dots, np.full(len(dots), y), ".", color=colour(method), alpha=0.4, markersize=5, mew=0)
            _draw_estimate(axes, estimate, y, method)
        axes.axvline(SOLVED, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
        axes.set_title(name)
        axes.set_xlabel("return per episode")
    note = mean_note(analysis.methods) + ("" if analysis.all_one_seed else ", small dots: seeds")
    title(figure, f"Return after training: {note}; dotted: solved ({SOLVED})")
    return figure


def sample_efficiency(analysis: Analysis) -> Figure | None:
    """Environment steps until the return averaged over tasks reached a number, a line per method."""
    results = [result for result in analysis.results if result.steps_to]
    if not results:
        return None
    figure, panels = _lines_per_method(analysis, len(THRESHOLDS))
    last = max(x[-1] for result in results for x, _ in result.method.mean_return_curves())
    last = max(float(last), 1.0)
    never, steps = 1.12 * last, EngFormatter(sep="")
    for axes, threshold in zip(panels, THRESHOLDS, strict=True):
        for result in results:
            found, y = result.steps_to[threshold], _height(analysis, result.method)
            low, high = found.median.interval or (math.inf, math.inf)
            interval = (min(low, never), min(high, never)) if found.median.interval else None
            _draw_estimate(axes, Estimate(min(found.median.value, never), interval), y, result.method)
            if 0 < found.reached < found.seeds:
                note = f"{found.reached}/{found.seeds}"
                right = max(min(found.median.value, never), interval[1] if interval else 0)
                axes.annotate(note, (right, y), (5, 0), textcoords="offset points", fontsize=6, va="center")
        axes.axvspan(1.06 * last, 1.3 * last, color="0.94", zorder=0, linewidth=0)
        axes.text(1.28 * last, -0.5, "never", rotation=90, ha="right", va="top", color="0.4", fontsize="small")
        axes.set_xlim(0, 1.3 * last)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: steps(x) if x <= last else ""))
        axes.set_title(f"to a return of {threshold}")
        axes.set_xlabel(STEPS_LABEL)
    seeds = seeds_note([result.method for result in results])
    note = seeds if analysis.all_one_seed else f"median over {seeds}, 95 % intervals from 6 seeds on"
    if any(0 < found.reached < found.seeds for result in results for found in result.steps_to.values()):
        note += "; 9/10: seeds that came there"
    title(figure, f"Steps until the greedy return, averaged over tasks, first reached a number: {note}")
    return figure


def parameter_efficiency(analysis: Analysis) -> Figure | None:
    """Return after training, averaged over tasks, against the number of parameters: a panel per variant."""
    sizes = {result.method.name: result.parameters for result in analysis.results if result.parameters}
    if not sizes:
        return None
    means = {result.method.name: result.mean.overall for result in analysis.results}
    rows = variants(analysis)
    figure = Figure(figsize=(2.6 + 4 * len(rows), 3.8), layout="constrained")
    panels = figure.subplots(1, len(rows), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (variant, methods) in zip(panels, rows.items(), strict=True):
        for method in methods:
            if method.name not in sizes:
                continue
            alike = [other.name for other in methods if sizes.get(other.name) == sizes[method.name]]
            # Methods of one size would hide one another.
            x = sizes[method.name] * SPREAD ** (alike.index(method.name) - (len(alike) - 1) / 2)
            estimate, shade = means[method.name], colour(method)
            if estimate.interval is not None:
                axes.plot([x, x], estimate.interval, color=shade, linewidth=1.4)
            name = label(method, analysis.methods, method.family)
            axes.plot([x], [estimate.value], "o", label=name, **marker(method.blind, shade))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(variant)
        axes.set_xlabel("parameters (equal ones spread)")
        axes.grid(axis="y", color="0.93", linewidth=0.8)
    panels[0].set_ylabel("return per episode, mean over tasks")
    legend_beside(panels[-1], handles_of(panels))
    title(figure, f"Return against size of the network: {mean_note(analysis.methods)}")
    return figure


def performance_profiles(analysis: Analysis) -> Figure:
    """Share of all seeds and tasks whose return is above a number, a panel per variant, a line per method."""
    rows = variants(analysis)
    figure = Figure(figsize=(1 + 5.2 * len(rows), 4.2), layout="constrained")
    panels = figure.subplots(1, len(rows), sharex=True, sharey=True, squeeze=False)[0]
    lowest = min(float(method.scores.min()) for method in analysis.methods)
    highest = max(float(method.scores.max()) for method in analysis.methods)
    margin = max(0.05 * (highest - lowest), 1.0)
    thresholds = np.linspace(lowest - margin, highest + margin, PROFILE_POINTS)
    banded = all(len(methods) <= MOST_BANDS for methods in rows.values())  # more would hide one another
    for axes, (variant, methods) in zip(panels, rows.items(), strict=True):
        for method in methods:
            profile = performance_profile(method.scores, thresholds)
            style = line_style(method)
            axes.plot(thresholds, profile.share, label=label(method, analysis.methods, method.family), **style)
            if banded and profile.low is not None and profile.high is not None:
                axes.fill_between(thresholds, profile.low, profile.high, color=style["color"], alpha=0.13, linewidth=0)
        axes.axvline(SOLVED, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
        axes.set_title(variant)
        axes.set_xlabel("return per episode")
        axes.legend(loc="lower left")
    panels[0].set_ylabel("share of seeds and tasks above it")
    note = seeds_note(analysis.methods)
    if banded and not analysis.all_one_seed:
        note += ", 95 % intervals"
    title(figure, f"Performance profiles, higher is better: {note}; dotted: solved ({SOLVED})")
    return figure


def _lines_per_method(analysis: Analysis, columns: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side with a line per method from top to bottom, its variants beside each other."""
    names = row_names(analysis)
    figure = Figure(figsize=(2.6 + 2.3 * columns, 1.5 + 0.38 * len(names)), layout="constrained")
    panels = list(figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0])
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for axes in panels:
        axes.grid(axis="y", color="0.93", linewidth=0.8)
        axes.set_axisbelow(True)
    if len(variants(analysis)) > 1:
        legend_beside(panels[-1], variant_markers(analysis))
    return figure, panels


def _height(analysis: Analysis, method: Method) -> float:
    """The method's line: the blind variant a little below the aware one."""
    shift = 0.17 if len(variants(analysis)) > 1 else 0.0
    return families(analysis).index(method.family) + (shift if method.blind else -shift)


def _draw_estimate(axes: Axes, estimate: Estimate, y: float, method: Method) -> None:
    if estimate.interval is not None:
        axes.plot(estimate.interval, [y, y], color=colour(method), linewidth=1.4, solid_capstyle="butt")
    axes.plot([estimate.value], [y], "o", **marker(method.blind, colour(method)))
