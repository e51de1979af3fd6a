"""Checks of states that were read from a file: each part must have the form that this program gives it.

The archive has been checked by `mtrl.checkpoint` before. Its contents may still be those of a stranger, or of another
model, and are checked here before anything goes on from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.files import one_line

__all__ = ["PCG64", "AtLeast", "Each", "Like", "Number", "Whole", "check_adam", "check_form"]


@dataclass(frozen=True)
class Whole:
    """The form of an integer from 0 to below `below`."""

    below: int = 2**63


@dataclass(frozen=True)
class Number:
    """The form of a number of Python or NumPy from `least` to `most`, which may be NaN only where no limit is given."""

    least: float | None = None
    most: float = math.inf


@dataclass(frozen=True)
class Like:
    """The form of a tensor or an array of the type, the dtype and the shape of `example`.

    Attributes:
        example: the example; its numbers do not matter.
        rows: whether the number of rows may be another.
        least: the smallest value. None: any value that is finite.
        finite: whether all numbers must be finite. A number is never NaN where `least` is given.
    """

    example: Tensor | NDArray[Any]
    rows: bool = False
    least: float | None = None
    finite: bool = True


@dataclass(frozen=True)
class Each:
    """The form of a list of any length whose items have one form, or of a dictionary from names to such items."""

    form: Any
    kind: type = list


class AtLeast(dict[str, Any]):
    """The form of a dictionary that has these keys and may have others."""


PCG64 = {
    "bit_generator": "PCG64",
    "state": {"state": Whole(2**128), "inc": Whole(2**128)},
    "has_uint32": Whole(2),
    "uinteger": Whole(2**32),
}
"""The form of the state of NumPy's default generator."""


def check_form(name: str, value: Any, form: Any) -> None:
    """Check that `value` has a form.

    Args:
        name: what the value is, for the message.
        value: what was read from a file.
        form: one of the classes above; `Any`; a type, which must be the value's own; a tensor or an array, as in
            `Like`; a dictionary, a list or a tuple of forms, which must have the same keys or the same length; or
            another value, which must be equal.

    Raises:
        ValueError: the value has another form.
    """
    if form is Any:
        return
    if isinstance(form, Each):
        _check_type(name, value, form.kind)
        if form.kind is dict and not all(type(key) is str for key in value):
            raise ValueError(f"{name} has keys that are no names")
        parts = dict.fromkeys(value if form.kind is dict else range(len(value)), form.form)
    elif isinstance(form, dict):
        _check_keys(name, value, form)
        parts = form
    elif isinstance(form, list | tuple):
        _check_type(name, value, type(form))
        if len(value) != len(form):
            raise ValueError(f"{name} has {len(value)} parts; it must have {len(form)}")
        parts = dict(enumerate(form))
    else:
        _check_leaf(name, value, Like(form) if isinstance(form, Tensor | np.ndarray) else form)
        return
    for key, part in parts.items():
        check_form(f"{name}[{key!r}]", value[key], part)


def check_adam(name: str, state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Check that an optimizer like Adam can go on from a state after a step; its learning rate may be another.

    Raises:
        ValueError: the state is that of another optimizer, or impossible.
    """
    own = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "lr": Number(0, 1e30)} for group in own["param_groups"]]
    check_form(name, state, {"state": dict, "param_groups": groups})
    if len(state["state"]) != len(parameters):
        raise ValueError(f"{name} has moments of {len(state['state'])} of {len(parameters)} parameters")
    step = Like(torch.zeros(()), least=0)
    for index, part in state["state"].items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError(f"{name} has moments of a parameter {_shown(index)}, which there is not")
        moments = {"exp_avg": parameters[index], "exp_avg_sq": Like(parameters[index], least=0, finite=False)}
        check_form(f"{name}['state'][{index}]", part, {"step": step, **moments})


def _check_type(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind and not (kind is dict and isinstance(value, dict)):
        raise ValueError(f"{name} is {_shown(value)}; it must be of type {kind.__name__}")


def _check_keys(name: str, value: Any, form: dict[Any, Any]) -> None:
    _check_type(name, value, dict)
    if missing := [key for key in form if key not in value]:
        raise ValueError(f"{name} has no {missing[0]!r}")
    if not isinstance(form, AtLeast) and (unknown := [key for key in value if key not in form]):
        raise ValueError(f"{name} has the unknown part {_shown(unknown[0])}")


def _check_leaf(name: str, value: Any, form: Any) -> None:
    if isinstance(form, Like):
        _check_array(name, value, form)
    elif isinstance(form, Whole):
        if type(value) is not int or not 0 <= value < form.below:
            raise ValueError(f"{name} is {_shown(value)}; it must be an integer from 0 to below {form.below}")
    elif isinstance(form, Number):
        is_number = isinstance(value, int | float | np.number | np.bool_)
        is_small = is_number and not (isinstance(value, int) and abs(value) >= 2**63)
        if not is_small or (form.least is not None and not form.least <= value <= form.most):
            limits = "" if form.least is None else f" from {form.least} to {form.most}"
            raise ValueError(f"{name} is {_shown(value)}; it must be a number{limits}")
    elif isinstance(form, type):
        _check_type(name, value, form)
    elif type(value) is not type(form) or value != form:
        raise ValueError(f"{name} is {_shown(value)}; it must be {_shown(form)}")


def _check_array(name: str, value: Any, form: Like) -> None:
    example = form.example
    kind = Tensor if isinstance(example, Tensor) else np.ndarray
    first = 1 if form.rows else 0
    if (
        type(value) is not kind
        or value.dtype != example.dtype
        or value.ndim != example.ndim
        or value.shape[first:] != example.shape[first:]
    ):
        rows = "any number of rows of " if form.rows else ""
        shape = f"{rows}{example.dtype} {tuple(example.shape[first:])}"
        raise ValueError(f"{name} is {_shown(value)}; it must be {kind.__name__} {shape}")
    numbers: Any = value if isinstance(value, Tensor) else torch.from_numpy(value)
    if form.finite and not bool(numbers.isfinite().all()):
        raise ValueError(f"{name} holds a number that is not finite")
    if form.least is not None and not bool((numbers >= form.least).all()):
        raise ValueError(f"{name} holds a number that is not at least {form.least}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    if isinstance(value, Mapping | list | tuple):
        return f"{type(value).__name__} of length {len(value)}"
    is_long = isinstance(value, int) and abs(value) >= 2**128  # Python refuses to print integers of many digits
    return "an integer of many digits" if is_long else one_line(repr(value), 60)
