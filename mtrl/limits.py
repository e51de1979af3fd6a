"""Checks of numbers, choices, names and sizes, made before anything is allocated. This module needs no PyTorch.

A mistyped number, or a number in a file from a stranger, must not fill the memory of the machine.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

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
    """Return `value` if it is a number within the limits; the result is an `int` if the number must be whole.

    Args:
        name: what the value is, for the message.
        value: the number. NaN and `bool` do not count as numbers; infinity passes only if `most` is infinite.
        least: the smallest number allowed. Default: there is no such limit.
        most: the largest number allowed. Default: every finite number is allowed.
        above: the number must be larger than this. Default: there is no such limit.
        below: the number must be smaller than this. Default: there is no such limit.
        whole: the number must be an integer. A float without a fraction, such as 1e5, is taken for one. Default False.

    Raises:
        ValueError: the value is not such a number. The message names the value and the limits, as in
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
        ValueError: the value is none of the choices, which the message lists.
    """
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
    return value


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Check that all `names` are known.

    Args:
        kind: a word for what has these names, in the singular, for the message.
        names: the names to check.
        known: the names that exist.

    Raises:
        ValueError: a name is not known. The message proposes the most similar known name, or lists all known names if
            none is similar.
    """
    known = tuple(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown {kind} {name!r}; {hint}")


@dataclass(frozen=True)
class Limits:
    """The limits of a number, as a part of its type: `tau: Annotated[float, Limits(least=0, most=1)]`.

    `check_fields` enforces them for the fields of a dataclass. The attributes are the arguments of `check_number`.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None


def check_fields(settings: Any) -> None:
    """Check every field of a dataclass by its type; a dataclass calls this from its `__post_init__`.

    Numbers are checked by `check_number` within the `Limits` of their type, and a `Literal` by `check_choice`. A `bool`
    and a `str` must be one. A field whose type allows None or a function may hold them. Other types are not checked.
    A float that stands for an integer, such as 1e5, is replaced by the integer.

    Raises:
        ValueError: a field holds something else; the message names the field.
    """
    settings_type: Any = type(settings)
    for name, kind in _field_types(settings_type).items():
        value = getattr(settings, name)
        checked = _checked(name, value, kind)
        if checked is not value:
            object.__setattr__(settings, name, checked)  # the dataclass may be frozen


@cache
def _field_types(settings_type: Any) -> dict[str, Any]:
    """The types of a dataclass's fields with what `Annotated` adds to them."""
    hints = get_type_hints(settings_type, include_extras=True)
    return {field.name: hints[field.name] for field in fields(settings_type)}


def _checked(name: str, value: Any, kind: Any, limits: Limits | None = None) -> Any:
    """Return `value` as the type `kind` has it, or raise `ValueError`."""
    origin = get_origin(kind)
    if origin is Annotated:
        kind, *extras = get_args(kind)
        return _checked(name, value, kind, next((extra for extra in extras if isinstance(extra, Limits)), limits))
    if origin in (Union, UnionType):
        kinds = get_args(kind)
        has_function = any(get_origin(option) is Callable for option in kinds)
        if (value is None and NoneType in kinds) or (callable(value) and has_function):
            return value
        plain = [option for option in kinds if option is not NoneType and get_origin(option) is not Callable]
        return _checked(name, value, plain[0], limits) if len(plain) == 1 else value
    if origin is Literal:
        return check_choice(name, value, get_args(kind))
    if kind in (int, float):
        return check_number(name, value, whole=kind is int, **asdict(limits or Limits()))
    if kind in (bool, str) and not isinstance(value, kind):
        raise ValueError(f"{name} is {value!r}; it must be {'True or False' if kind is bool else 'a string'}")
    return value


def check_integer(name: str, value: Any, low: float, high: float) -> None:
    """Check that `value` is an integer from `low` to `high`; see `check_number`."""
    check_number(name, value, least=low, most=high, whole=True)


def check_parameters(count: int) -> None:
    """Check the number of parameters of a network that is about to be made.

    Raises:
        ValueError: it exceeds 100,000,000, or the limit of a surrounding `at_most`.
    """
    if count > (most := _most_parameters.get()):
        raise ValueError(f"the network would have {count} parameters; it must be between 1 and {most}")


@contextmanager
def at_most(parameters: int) -> Iterator[None]:
    """A context in which `check_parameters` refuses networks of more than this number of parameters."""
    token = _most_parameters.set(min(parameters, _most_parameters.get()))
    try:
        yield
    finally:
        _most_parameters.reset(token)


def perceptron_parameters(*widths: int) -> int:
    """The number of weights and biases of a multi-layer perceptron, given its widths from the input to the output."""
    return sum((before + 1) * after for before, after in pairwise(widths))
