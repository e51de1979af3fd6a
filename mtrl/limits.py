"""How large things may be, found out before anything is allocated: no slip and no stranger's file takes all memory."""

from __future__ import annotations

from collections.abc import Iterator
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


def check_integer(name: str, value: Any, low: float, high: float) -> None:
    """Let `value` pass if it is a whole number from `low` to `high`.

    Raises:
        ValueError: it is not.
    """
    if not (isinstance(value, int | np.integer) and low <= value <= high):
        limits = f"at least {low}" if high == np.inf else f"between {low} and {high}"
        raise ValueError(f"{name} is {value!r}; it must be {limits}")


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
