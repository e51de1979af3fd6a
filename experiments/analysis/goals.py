"""What counts as solved in the tasks of an analysis, and the returns at which sample efficiency is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from experiments.analysis.markdown import plain
from experiments.analysis.replicates import Method

Solved = Mapping[str, float | None]
"""For each task, the return that counts as solved; None if it has none."""

Goal = float | Literal["solved"]
"""A return that the mean over tasks is to reach, or that every task is to reach what counts as solved in it."""

SHARES = (0.25, 0.5, 0.75, 1.0)


def solved_returns(methods: Iterable[Method]) -> dict[str, float | None]:
    """The return that counts as solved, for each task of the methods; None where none is known, or runs disagree."""
    found: dict[str, set[float | None]] = {}
    for method in methods:
        for run in method.runs:
            for task in method.tasks:
                found.setdefault(task, set()).add(run.solved_at(task))
    return {task: values.copy().pop() if len(values) == 1 else None for task, values in found.items()}


def disagreements(methods: Iterable[Method]) -> list[str]:
    """A sentence for each task on which runs disagree about what counts as solved."""
    methods = list(methods)
    found = []
    for task, value in solved_returns(methods).items():
        values = {run.solved_at(task) for method in methods if task in method.tasks for run in method.runs}
        if value is None and len(values) > 1:
            shown = ", ".join(sorted("none" if each is None else f"{each:g}" for each in values))
            found.append(f"Runs differ in the return that counts as solved in {task}: {shown}.")
    return found


def common(solved: Solved) -> float | None:
    """The return that counts as solved in every task; None if the tasks differ in it, or have none."""
    values = set(solved.values())
    return values.pop() if len(values) == 1 else None


def goals_of(solved: Solved) -> tuple[Goal, ...]:
    """The goals: quarters of the way to a return that all tasks have in common, or what counts as solved in each task.

    There are none where no task has such a return.
    """
    threshold = common(solved)
    if threshold is not None:
        return tuple(share * threshold for share in SHARES) if threshold > 0 else (threshold,)
    return ("solved",) if any(value is not None for value in solved.values()) else ()


def goal_name(goal: Goal) -> str:
    """The goal, as in `steps to 50`."""
    return goal if isinstance(goal, str) else f"{goal:g}"


def success_note(solved: Solved, methods: Iterable[Method]) -> str:
    """What is a success, for each task, in words that follow `success is the share of episodes`."""
    if (threshold := common(solved)) is not None:
        return f"with a return of at least {threshold:g}"
    rated = {task for method in methods for task in method.rated}
    of_task = []
    for task, value in solved.items():
        what = "as its environment reports" if task in rated else "unknown, and not counted"
        if value is not None:
            what = f"a return of at least {value:g}, or what its environment reports"
        of_task.append(f"{plain(task)}: {what}")
    return f"that were successful ({'; '.join(of_task)})"


def mark_note(solved: Solved) -> str:
    """A sentence about the dotted lines of figures; empty if there are none."""
    if (threshold := common(solved)) is not None:
        return f"Dotted line: the return that counts as solved ({threshold:g})."
    return "Dotted lines: the return that counts as solved in the task." if goals_of(solved) else ""
