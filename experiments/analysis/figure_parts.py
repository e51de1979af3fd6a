"""What several figures are made of: legends, rows of methods, limits of axes, and numbers in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.analysis.comparison import Analysis, Result
from experiments.analysis.figure_data import Key, Point
from experiments.analysis.intervals import Estimate
from experiments.analysis.looks import looks_of, seeds_note, variants
from experiments.analysis.replicates import Method

STEPS_LABEL = "environment steps (all tasks)"
MOST_BANDS = 3  # of a panel; more would hide one another
END = 1.025  # where the values after training are drawn, relative to the last step
SHIFT = 0.17  # distance of a variant from the middle of its row
RAISED = 0.13  # distance of the dots of single seeds from their interval, which would hide them


def method_keys(analysis: Analysis) -> list[Key]:
    """The legend of methods."""
    looks = looks_of(method.family for method in analysis.methods)
    return [
        Key(f"m{index}", method.name, looks[method.family], method.blind)
        for index, method in enumerate(analysis.methods)
    ]


def key_of(analysis: Analysis, method: Method) -> Key:
    """The method in the legend."""
    return method_keys(analysis)[analysis.methods.index(method)]


def last_step_of(methods: Sequence[Method]) -> float:
    """The environment steps of the longest run of all methods, at least 1."""
    return max(1.0, *(method.last_step for method in methods))


def ranked_families(analysis: Analysis) -> list[str]:
    """Names of methods without their variants, the one with the highest return first."""
    ranked = sorted(analysis.results, key=lambda result: -result.mean.overall.value)
    return list(dict.fromkeys(result.method.family for result in ranked))


def row_names(analysis: Analysis) -> list[str]:
    """Names of rows: with the variant only where all methods are of one variant."""
    families = ranked_families(analysis)
    if len(variants(analysis)) > 1:
        return families
    return [method.name for family in families for method in analysis.methods if method.family == family]


def row_point(
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
    place = ranked_families(analysis).index(method.family) + (shift if method.blind else -shift)
    return Point(key_of(analysis, method), method.name, estimate, place, says, seeds or {}, reached)


def with_margin(lows: Sequence[float], highs: Sequence[float], least: float = 1.0) -> tuple[float, float]:
    """The limits of an axis that holds all these numbers, with room at both ends, which is at least `least`."""
    low, high = min(lows), max(highs)
    margin = max(0.05 * (high - low), least)
    return low - margin, high + margin


def in_words(estimate: Estimate, digits: int = 1) -> str:
    """An estimate as text, with its interval if it has one."""
    if estimate.interval is None:
        return f"{estimate.value:.{digits}f}"
    low, high = estimate.interval
    return f"{estimate.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def seeds_sentence(methods: Sequence[Method]) -> str:
    """The number of seeds as the beginning of a sentence."""
    note = seeds_note(methods)
    return note[0].upper() + note[1:]
