"""Observations of any space as rows of one array: what the replay keeps and what the networks take."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from mtrl.files import one_line

__all__ = ["TASK", "ObservationRows", "Observations", "whole_space"]

TASK = "task"
"""The key of the task's one-hot in observations that are a dictionary."""

KINDS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
LARGEST_DISCRETE = 2**24  # a float32 holds every integer up to here

Observations = NDArray[Any] | Mapping[str, NDArray[Any]]
"""Observations of N columns: an array (N, ...), or one such array for each key of a dictionary."""


class ObservationRows:
    """Turns observations into rows of one array, and rows into tensors of the space's shapes.

    A row begins with the numbers of the observation, as float32. Images, which are Boxes of `uint8` with at least two
    axes, follow as bytes. If there are images, all of a row is bytes: a number then takes four of them.

    Args:
        space: a Box of any numeric dtype, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
        one_hot_size: the length of the task's one-hot: the end of a one-dimensional Box, or the part `task` of a Dict.
            0 if observations do not hold the task.

    Attributes:
        numbers: how many numbers a row holds.
        bytes: how many bytes of images follow them.
        dtype: `uint8` if there are images, else `float32`.
        is_flat: whether a row is the observation itself, flattened.

    Raises:
        ValueError: the space is none of these, or has no room for the one-hot.
    """

    def __init__(self, space: spaces.Space[Any], one_hot_size: int = 0) -> None:
        self.space, self.one_hot_size = space, one_hot_size
        self._leaves: dict[str | None, Any] = {None: space}
        if isinstance(space, spaces.Dict):
            self._leaves = dict(space.spaces.items())
        for key, leaf in self._leaves.items():
            _check_leaf(leaf, key)
        if one_hot_size:
            place: Any = self._leaves.get(TASK if isinstance(space, spaces.Dict) else None)
            vector = isinstance(place, spaces.Box) and len(place.shape) == 1 and place.shape[0]
            if not vector or vector < one_hot_size or (isinstance(space, spaces.Dict) and vector > one_hot_size):
                raise ValueError(f"observations in {one_line(space)} hold no one-hot of {one_hot_size} tasks")
        self._images = [key for key, leaf in self._leaves.items() if is_kept_as_bytes(leaf)]
        others = [key for key in self._leaves if key not in self._images]
        self._others = sorted(others, key=lambda key: key == TASK)  # the one-hot is the last of the numbers
        self.numbers = sum(prod(self._leaves[key].shape) for key in self._others)
        self.bytes = sum(prod(self._leaves[key].shape) for key in self._images)
        self.dtype: type[np.generic] = np.uint8 if self._images else np.float32
        self.is_flat = not self._images and isinstance(self._leaves.get(None), spaces.Box | spaces.MultiBinary)

    def of(self, observations: Observations) -> NDArray[Any]:
        """Rows (N, ...) of the observations of N columns."""
        if self.is_flat:
            rows = np.asarray(observations, np.float32)
            return rows if rows.ndim == 2 else rows.reshape(len(rows), -1)
        parts = [observations] if None in self._leaves else [observations[key] for key in self._leaves]  # type: ignore[index]
        arrays = {key: np.asarray(part) for key, part in zip(self._leaves, parts, strict=True)}
        count = len(next(iter(arrays.values())))
        columns = [self._numbers_of(key, arrays[key]).reshape(count, -1) for key in self._others]
        if not self._images:
            return np.concatenate(columns, 1)
        images = [arrays[key].reshape(count, -1) for key in self._images]
        if not columns and len(images) == 1:
            return images[0]
        numbers = np.concatenate([*columns, np.empty((count, 0), np.float32)], 1)
        return np.concatenate((numbers.view(np.uint8), *images), 1)

    def of_one(self, observation: Any) -> NDArray[Any]:
        """The row of a single observation, as an environment gives it."""
        if isinstance(observation, Mapping):
            observation = {key: np.asarray(part)[None] for key, part in observation.items()}
        else:
            observation = np.asarray(observation)[None]
        row: NDArray[Any] = self.of(observation)[0]
        return row

    def numbers_in(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """The numbers in rows (N, ...), (N, numbers): all that may fail to be finite."""
        return rows if self.dtype is np.float32 else np.ascontiguousarray(rows[:, : 4 * self.numbers]).view(np.float32)

    def one_hots(self, rows: Tensor) -> Tensor:
        """The one-hot of the task (N, one_hot_size) in each of the rows (N, ...)."""
        return self._number_columns(rows, self.numbers - self.one_hot_size, self.numbers)

    def tensors(self, rows: Tensor) -> Tensor | dict[str, Tensor]:
        """Tensors (N, *shape) of rows (N, ...): uint8 for images, else float32. A Dict gives one for each key."""
        parts: dict[str | None, Tensor] = {}
        start = 0
        for key in self._others:
            size = prod(self._leaves[key].shape)
            parts[key] = self._number_columns(rows, start, start + size).view(len(rows), *self._leaves[key].shape)
            start += size
        start *= 4
        for key in self._images:
            size = prod(self._leaves[key].shape)
            parts[key] = rows[:, start : start + size].view(len(rows), *self._leaves[key].shape)
            start += size
        return parts[None] if None in parts else {str(key): parts[key] for key in self._leaves}

    def _number_columns(self, rows: Tensor, start: int, stop: int) -> Tensor:
        if self.dtype is np.float32:
            return rows[:, start:stop]
        return rows[:, 4 * start : 4 * stop].contiguous().view(torch.float32)

    def _numbers_of(self, key: str | None, values: NDArray[Any]) -> NDArray[np.float32]:
        """The values of a part as numbers; integers that are counted from another start are counted from 0."""
        leaf = self._leaves[key]
        counted = isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete)
        return np.asarray(values - leaf.start if counted else values, np.float32)


def is_kept_as_bytes(space: spaces.Space[Any]) -> bool:
    """Whether the replay keeps observations of this space as bytes, as it does for images."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) >= 2


def whole_space(space: spaces.Space[Any], one_hot_size: int) -> spaces.Space[Any]:
    """The space of what a features extractor takes: the observation without the task's one-hot.

    An observation with a one-hot that is a Dict of one more part stands for that part.
    """
    if one_hot_size and isinstance(space, spaces.Box):
        return spaces.Box(space.low[:-one_hot_size], space.high[:-one_hot_size], dtype=space.dtype)
    if not one_hot_size or not isinstance(space, spaces.Dict):
        return space
    rest = {key: leaf for key, leaf in space.spaces.items() if key != TASK}
    return next(iter(rest.values())) if len(rest) == 1 else spaces.Dict(rest)


def _check_leaf(space: spaces.Space[Any], key: str | None) -> None:
    what = "observations are" if key is None else f"the observations' part {key!r} is"
    if not isinstance(space, KINDS):
        raise ValueError(
            f"{what} in {type(space).__name__}, which is not supported; mtrl.rl.make_task_vec_env and "
            "gymnasium.wrappers.FlattenObservation make vectors of Dict and Tuple"
        )
    if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind not in "buif":
        raise ValueError(f"{what} in {one_line(space)}, whose dtype is not numeric")
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        raise ValueError(
            f"{what} in {one_line(space)}, which has several axes; use gymnasium.wrappers.FlattenObservation"
        )
    if isinstance(space, spaces.Discrete) and space.n > LARGEST_DISCRETE:
        raise ValueError(f"{what} in {space}; at most {LARGEST_DISCRETE:,} different ones are supported")
