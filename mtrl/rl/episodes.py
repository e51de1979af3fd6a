"""What is said of a whole episode of an evaluation: whether it was a success, and that it does not end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtrl.files import one_line

__all__ = ["long_episode", "succeeded"]

LONG_EPISODE = 100_000
"""Steps of an episode of an evaluation after which there is a warning."""


def succeeded(infos: Iterable[Mapping[str, Any]], total: float, threshold: float | None) -> bool | None:
    """Whether an episode was a success; None if nothing says what success is.

    Args:
        infos: the `info` of each step of the episode. Where they have `"is_success"` or `"success"`, these decide: an
            episode is a success if `"is_success"` is true at its last step, or `"success"` at any step, as Meta-World
            counts.
        total: the undiscounted return of the episode.
        threshold: otherwise, the return from which an episode is a success, as `solved_at` gives it; None if there is
            none.

    Raises:
        ValueError: an `info` has several numbers, or no number, in place of one truth value. None and NaN say nothing.
    """
    last, anywhere = None, None
    for info in infos:
        last, now = (_truth(info, name) for name in ("is_success", "success"))
        anywhere = now or bool(anywhere) if now is not None else anywhere
    if last is not None or anywhere is not None:
        return anywhere if last is None else last
    return None if threshold is None else total >= threshold


def long_episode(step: int, task: str) -> str | None:
    """What there is to say at this step of an episode of an evaluation, which would otherwise go on without a word."""
    if step != LONG_EPISODE:
        return None
    return (
        f"an episode of task {task!r} goes on after {step:,} steps; if the task has no end, make its environment with "
        "gymnasium.wrappers.TimeLimit(env, max_episode_steps=...)"
    )


def _truth(info: Mapping[str, Any], name: str) -> bool | None:
    value = info.get(name)
    try:
        number = None if value is None else np.asarray(value).item()
        return None if number is None or math.isnan(number) else bool(number)
    except (TypeError, ValueError):
        raise ValueError(f"info[{name!r}] is {one_line(repr(value), 60)}; it must be a single truth value") from None
