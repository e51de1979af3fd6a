"""Figures of what balancers do: the weights that they give to tasks, RGB's angles, cosines, and AIM's thresholds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.analysis.arrays import Array
from experiments.analysis.comparison import Analysis
from experiments.analysis.figure_data import Axis, CurveFigure, Key, Line, MatrixFigure, Panel, Point, RowFigure
from experiments.analysis.figure_parts import STEPS_LABEL, in_words, key_of, last_step_of, seeds_sentence, with_margin
from experiments.analysis.intervals import summarise
from experiments.analysis.looks import COLOURS, Look, curves_note, label, mean_note, task_look
from experiments.analysis.replicates import BINS, Curve, Method

BESIDE = 0.2  # distance of two tasks in the row of their method
ALL_TASKS = Key("t-all", "all tasks", Look(COLOURS["independent_dqn"]))


def task_weights(analysis: Analysis) -> CurveFigure | None:
    """Learned coefficients of the task gradients during training: a panel per method, a line per task."""
    methods = [method for method in analysis.methods if method.learns_weights]
    axis = Axis("coefficient of gradient", "coefficient", mark=1)
    note = f"Learned coefficients of the task gradients, averaged over every 1/{BINS} of training; dotted line: 1"
    return _curves_per_method(analysis, methods, Method.weight_curve, axis, "task_weights", "Task weights", note)


def weight_profile(analysis: Analysis) -> RowFigure | None:
    """What each method does with the weights of tasks: which it prefers, how much it changes them, and their size."""
    methods = [method for method in analysis.methods if method.learns_weights]
    profiles = {method: profile for method in methods if (profile := method.weight_profile()) is not None}
    if not profiles:
        return None
    keys = task_keys(analysis)
    panels = []
    for title, equal, values in (  # the second is the number of equal weights
        ("relative weight", 1, {m: p.relative for m, p in profiles.items()}),
        ("its deviation during training", 0, {m: p.deviation for m, p in profiles.items()}),
        ("mean weight", 1, {m: p.size for m, p in profiles.items()}),
    ):
        points = []
        for row, (method, of_seeds) in enumerate(values.items()):
            tasks = method.tasks if of_seeds.shape[1] > 1 else ("all tasks",)
            for place, (task, estimate) in enumerate(zip(tasks, summarise(of_seeds).tasks, strict=True)):
                key = keys[analysis.tasks.index(task)] if task in analysis.tasks else ALL_TASKS
                shift = BESIDE * (place - (len(tasks) - 1) / 2)
                points.append(Point(key, key.name, estimate, row + shift, f"{method.name}: {in_words(estimate, 2)}"))
        panels.append(Panel(title, points=points, mark=equal))
    ends = [end for p in panels for q in p.points for end in (q.estimate.value, *(q.estimate.interval or ()))]
    return RowFigure(
        name="weight_profile",
        title="What methods do with the weights of tasks",
        note="Relative weight: the coefficient of a task's gradient, averaged over training, relative to the mean of "
        f"all tasks. Its deviation: how much it changes, in averages over 1/{BINS} of training. "
        "Mean weight: of all tasks. Dotted line: equal weights. "
        f"{mean_note(methods)[0].upper()}{mean_note(methods)[1:]}.",
        panels=panels,
        x=Axis("coefficient", "coefficient", with_margin([0, *ends], [1, *ends], 0)),
        rows=[label(method, list(profiles)) for method in profiles],
        both_variants=False,
        keys=[*keys, ALL_TASKS],
    )


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
    keys = task_keys(analysis)
    panels = [
        Panel(
            label(method, methods),
            [
                Line(key, key.name, curve)
                for key in keys
                if key.name in method.tasks and (curve := find(method, key.name)) is not None
            ],
            key=key_of(analysis, method),
        )
        for method in methods
    ]
    note = f"{note}; {curves_note(methods)}."
    return CurveFigure(
        name, title, note, panels, Axis(STEPS_LABEL, "steps"), y, "method", keys=keys, last=last_step_of(methods)
    )


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
        f"{seeds_sentence(list(matrices))}.",
        panels=_matrix_panels(analysis, matrices),
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
        f"the row gives way to that of the task in the column.{_interventions(matrices)}{_gates(matrices)} "
        f"{seeds_sentence(list(matrices))}.",
        panels=_matrix_panels(analysis, matrices),
        unit="tau (a cosine)",
        says="{row} gives way to {column}\nbelow a cosine of {value}",
        x="gives way to",
        y="gradient of",
    )


def _interventions(thresholds: Mapping[Method, Array]) -> str:
    """A sentence that says for how many pairs the cosine is usually below the threshold."""
    pairs = below = 0
    for method, tau in thresholds.items():
        cosines = method.mean_cosines()
        if cosines is not None:
            known = np.isfinite(tau) & np.isfinite(cosines) & ~np.eye(len(tau), dtype=bool)
            pairs, below = pairs + int(known.sum()), below + int((cosines < tau)[known].sum())
    return f" The mean cosine is below the threshold in {below} of {pairs} cases: there AIM mostly intervenes." * (
        pairs > 0
    )


def _gates(thresholds: Mapping[Method, Array]) -> str:
    """A sentence about the diagonal, if a method has gates."""
    gated = any(np.isfinite(tau.diagonal()).any() for tau in thresholds.values())
    return " On the diagonal are the gates: at 1 half of a task's gradient passes, far below it all." * gated


def _matrix_panels(analysis: Analysis, matrices: Mapping[Method, Array]) -> list[Panel]:
    return [
        Panel(label(method, list(matrices)), matrix=matrix, tasks=method.tasks, key=key_of(analysis, method))
        for method, matrix in matrices.items()
    ]


def task_keys(analysis: Analysis) -> list[Key]:
    """The legend of tasks."""
    return [Key(f"t{index}", task, task_look(index)) for index, task in enumerate(analysis.tasks)]
