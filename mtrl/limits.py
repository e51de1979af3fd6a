"""How large things may be, found out before anything is allocated: no slip and no stranger's file takes all memory."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import numpy as np

LARGEST_REPLAY = 10**8  # transitions, over all tasks
WIDEST_LAYER = 65_536
MOST_LAYERS = 100
LARGEST_EMBEDDING = 4_096

_most_parameters: ContextVar[int] = ContextVar("the parameters that a network may have", default=10**8)


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> Any:
    """Return `value` if it is a number within the limits, as an `int` where it must be whole.

    Args:
        name: what the value is, for the message.
        value: the number. NaN and `bool` are no numbers here; infinity passes only where `most` is infinite.
        least: the smallest number allowed. Default: none.
        most: the largest number allowed. Default: any that is finite.
        above: the number must be larger than this. Default: none.
        below: the number must be smaller than this. Default: none.
        whole: the number must be an integer. A float without a fraction, such as 1e5, is taken for one. Default False.

    Raises:
        ValueError: it is not; the message names the value and the limits, as in
            `alpha is -1; it must be at least 0 and finite`.
    """
    number: Any = value
    if whole and isinstance(value, float) and value.is_integer():
        number = int(value)
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    is_number = isinstance(number, kinds) and not isinstance(number, bool)
    if (
        is_number
        and (least is None or number >= least)
        and (above is None or number > above)
        and (below is None or number < below)
        and (abs(number) < math.inf if most is None else number <= most)
    ):
        return int(number) if whole else number
    rules = [f"at least {least}"] if least is not None else []
    rules += [f"above {above}"] if above is not None else []
    rules += [f"below {below}"] if below is not None else []
    if most not in (None, math.inf):
        rules = [f"between {least} and {most}"] if least is not None else [*rules, f"at most {most}"]
    elif most is None and below is None and not whole:
        rules.append("finite")
    if not is_number or not rules:
        rules = ["an integer" if whole else "a number", " and ".join(rules)]
        raise ValueError(f"{name} is {value!r}; it must be {', '.join(filter(None, rules))}")
    raise ValueError(f"{name} is {value!r}; it must be {' and '.join(rules)}")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        ValueError: it is not; the message lists the choices.
    """
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
    return value


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Let `names` pass if all of them are known.

    Args:
        kind: what the names are names of, in the singular, for the message.
        names: the names to check.
        known: the names that exist.

    Raises:
        ValueError: one is not known; the message has the nearest known name, or all of them if none is near.
    """
    known = tuple(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown {kind} {name!r}; {hint}")


def check_integer(name: str, value: Any, low: float, high: float) -> None:
    """Let `value` pass if it is a whole number from `low` to `high`; see `check_number`."""
    check_number(name, value, least=low, most=high, whole=True)


def check_parameters(count: int) -> None:
    """Let a network of `count` parameters pass that is about to be made.

    Raises:
        ValueError: it is too large, in itself or for the file that it is made for.
    """
    if count > (most := _most_parameters.get()):
        raise ValueError(f"the network would have {count} parameters; it must be between 1 and {most}")


@contextmanager
def at_most(parameters: int) -> Iterator[None]:
    """Inside, no network of more parameters is made."""
    token = _most_parameters.set(min(parameters, _most_parameters.get()))
    try:
        yield
    finally:
        _most_parameters.reset(token)


def perceptron_parameters(*widths: int) -> int:
    """Weights and biases of a multi-layer perceptron, from its input's width to its output's."""
    return sum((before + 1) * after for before, after in pairwise(widths))
