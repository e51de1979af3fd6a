"""States of any form, and what a stranger may put in the place of each of their values."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

NUMBERS = (-1, 0, 10**6, 2**63, 10**400, 0.5, -1.0, 1e308, math.nan, math.inf, -math.inf, True)
OTHERS = (None, "x", "a\nb\x1b[31m", [], {}, (), [1], {"a": 1}, np.zeros(3), torch.ones(2, 2))


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values of a state, leaving out most of long lists."""
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list | tuple):
        for index in sorted({0, len(node) - 1} if node else ()):
            yield from places(node[index], (*path, index))


def at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def with_other(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A state with another value at a path."""
    if not path:
        return value
    key, *rest = path
    changed = with_other(node[key], tuple(rest), value)
    if isinstance(node, dict):
        return {**node, key: changed}
    return type(node)(changed if index == key else item for index, item in enumerate(node))


def odd_arrays(value: Any) -> Iterator[tuple[Any, bool]]:
    """Arrays in the place of an array, and whether its form is another."""
    array = np.array(value)
    flat = array.ravel()
    fills = (math.nan, math.inf, -1.0, 1e30) if array.dtype.kind == "f" else (-1, 99, 0)
    if array.dtype.kind in "fi":
        for fill in fills:
            yield np.full_like(array, fill), False
            if flat.size > 1:
                yield np.concatenate((np.array([fill], array.dtype), flat[1:])).reshape(array.shape), False
    yield array[None], True
    yield flat[:0], array.shape != (0,)
    if array.ndim:
        yield np.concatenate((array, array)), array.size > 0
        yield array[..., :-1], array.shape[-1] > 0
    yield array.astype(np.float64 if array.dtype != np.float64 else np.float32), True


def odd_parts(value: Any) -> Iterator[tuple[Any, bool]]:
    """Values in the place of a dictionary, a list or a tuple, and whether the form is another."""
    if isinstance(value, dict):
        for key in value:
            yield {name: item for name, item in value.items() if name != key}, True
            yield {(f"{key}x" if name == key else name): item for name, item in value.items()}, True
        yield {**value, "more": 1}, False
        yield {**value, 7: torch.ones(1)}, False
    else:
        yield type(value)(), False
        yield type(value)([*value, *value]), False
        yield type(value)(value[1:]), False
        yield (tuple if isinstance(value, list) else list)(value), True


def odd_values(value: Any) -> list[tuple[Any, bool]]:
    """What may stand in the place of a value, and whether its form is another than that of the value."""
    found = [(other, type(other) is not type(value)) for other in (*NUMBERS, *OTHERS)]
    if isinstance(value, torch.Tensor):
        found += [(torch.from_numpy(np.array(array)), is_other) for array, is_other in odd_arrays(value.numpy())]
    elif isinstance(value, np.ndarray):
        found += list(odd_arrays(value))
    elif isinstance(value, dict | list | tuple):
        found += 2 * list(odd_parts(value))
    return found


def has_nan(value: Any) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray):
        return bool(torch.as_tensor(value).isnan().any())
    return isinstance(value, float) and math.isnan(value)
