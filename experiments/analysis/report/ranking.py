"""The ranking at the top of the report: a row per method, with a picture of its difference to the baseline."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.analysis import tables
from experiments.analysis.comparison import Analysis, Result, told_apart
from experiments.analysis.figure_data import Key

WIDTH, MARGIN = 160, 6  # of a picture, in its own units, which are pixels


@dataclass(frozen=True)
class Cell:
    """What a cell says: a value, its interval (in small letters), and what follows it."""

    value: str
    interval: str = ""
    rest: str = ""

    @classmethod
    def of(cls, text: str) -> Cell:
        """The parts of a cell of table.md."""
        found = re.fullmatch(r"(\S+) (\[[^]]*\])(.*)", text)
        return cls(*found.groups()) if found else cls(text)


@dataclass(frozen=True)
class Picture:
    """Where the difference to the baseline and its interval lie, in pixels from the left; None where unknown."""

    value: float | None
    low: float | None = None
    high: float | None = None
    told_apart: bool = False


@dataclass(frozen=True)
class Row:
    """A method in the ranking."""

    key: Key
    name: Sequence[str]  # in parts, between which a line may break
    picture: Picture
    cells: Mapping[str, Cell]  # by column


@dataclass(frozen=True)
class Ranking:
    """All rows, the best method first, and the axis of their pictures."""

    rows: Sequence[Row]
    columns: Sequence[str]  # those beside the method and the difference
    zero: float  # where the baseline lies in every picture, in pixels from the left
    ticks: Sequence[tuple[float, str]]  # numbers below the axis, by their places
    width: int = WIDTH


def ranking(analysis: Analysis, keys: Sequence[Key]) -> Ranking:
    """The ranking of `analysis`, with the same rows as in table.md.

    Args:
        analysis: the results.
        keys: the legend of methods, in the order of the results.
    """
    by_method = {result.method.name: key for result, key in zip(analysis.results, keys, strict=True)}
    ranked = tables.ranking(analysis)
    ends = [end for result, _ in ranked for end in _ends(result)]
    low, high = min((0.0, *ends)), max((0.0, *ends))
    span = high - low or 1.0

    def place(value: float) -> float:
        return round(MARGIN + (value - low) / span * (WIDTH - 2 * MARGIN), 1)

    rows = []
    for result, texts in ranked:
        cells = {name: Cell.of(text) for name, text in zip(tables.RANKING_COLUMNS, texts, strict=True)}
        picture = Picture(place(0.0) if cells["verdict"].value == "baseline" else None)
        if result.comparison is not None:
            difference = result.comparison.difference
            low_end, high_end = map(place, difference.interval) if difference.interval else (None, None)
            picture = Picture(place(difference.value), low_end, high_end, told_apart(result))
        rows.append(Row(by_method[result.method.name], breakable(result.method.name), picture, cells))
    columns = ("verdict", "mean", "worst task", "success", "seeds")
    ticks = [(place(tick), f"{tick:+g}" if tick else "0") for tick in _ticks(low, high)]
    return Ranking(rows, columns, place(0.0), ticks)


def breakable(name: str) -> list[str]:
    """A name in parts that end in `_` or `-`, after which a line may break, and nowhere else."""
    return re.split("(?<=[_-])(?=.)", name)


def _ends(result: Result) -> tuple[float, ...]:
    """The numbers that have to be inside the pictures."""
    if result.comparison is None:
        return ()
    difference = result.comparison.difference
    return (difference.value, *(difference.interval or ()))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, as far apart as possible: 0, and one on each side on which differences reach that far."""
    reach = max(-low, high)
    if reach <= 0:
        return [0.0]
    unit = 10.0 ** math.floor(math.log10(reach))
    step = max(factor * unit for factor in (1, 2, 5) if factor * unit <= reach)
    return [tick for tick in (-step, 0.0, step) if low <= tick <= high]
