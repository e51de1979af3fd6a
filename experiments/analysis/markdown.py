"""Tables in Markdown, and numbers with their intervals as text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from experiments.analysis.intervals import Estimate

__all__ = ["cell", "count", "number", "plain", "table"]

# What would make Markdown of a name: code, emphasis, HTML, an entity, a link, a mention, strikethrough, an address.
_MARKUP = re.compile(
    r"[\\`*]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<=\])[(\[:]|(?<=\w)@(?=\w)|~(?=~)|(?<=:)/(?=/)|(?<=www)\.|(?<!\w)_|_(?!\w)"
)


def plain(text: str) -> str:
    """Text that somebody else has chosen, for Markdown to show as it is."""
    return _MARKUP.sub(r"\\\g<0>", text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown. A `|` in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def cell(estimate: Estimate | None, form: str) -> str:
    """An estimate as text: the value, and its interval if there is one; a dash for None.

    Args:
        estimate: the estimate.
        form: the format of its numbers, such as `"{:.1f}"`.
    """
    if estimate is None:
        return "-"
    value = number(estimate.value, form)
    if estimate.interval is None:
        return value
    low, high = (number(end, form) for end in estimate.interval)
    return f"{value} [{low}, {high}]"


def number(value: float | None, form: str) -> str:
    """A number as text. None is a dash. Infinity is `never`, because only steps to a return can be infinite."""
    if value is None:
        return "-"
    return "never" if value == math.inf else form.format(value)


def count(amount: int, noun: str) -> str:
    """An amount with its noun: `1 seed`, `2 seeds`."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"
