"""Arrays of scores, checked where they come in. All of them are float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def matrix(scores: Any, name: str = "scores") -> Array:
    """`scores` as a matrix (seeds, tasks).

    Raises:
        ValueError: it is empty, is no matrix, or has NaN or infinity in it. The message calls it `name`.
    """
    return _finite(scores, name, 2, "a matrix (seeds, tasks)")


def vector(values: Any, name: str) -> Array:
    """`values` as a vector (K,).

    Raises:
        ValueError: it is empty, is no vector, or has NaN or infinity in it. The message calls it `name`.
    """
    return _finite(values, name, 1, "a list of numbers")


def _finite(values: Any, name: str, dimensions: int, form: str) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):  # rows of unequal length, or something that is not a number
        raise ValueError(f"{name} must be {form} with as many numbers in each row") from None
    if array.ndim != dimensions or not array.size:
        raise ValueError(f"{name} must be {form}, got the shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} have NaN or infinity at index {np.argwhere(~np.isfinite(array))[0].tolist()}")
    return array
