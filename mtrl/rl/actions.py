"""Actions that lie in a Box with bounds, and those that a task has where tasks have different numbers of actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from mtrl.files import one_line
from mtrl.rl.observations import ObservationRows

Values = Callable[[Tensor], Tensor]

MOST_INTEGERS = 2**53
"""A number with a fraction tells integers of up to this size apart."""


class ActionScale:
    """Brings actions from -1 to 1 into a Box with bounds: -1 becomes the lower bound, and 1 the upper one.

    The result has the type of the Box and lies within its bounds. Integers are the nearest ones, so that both bounds
    can be reached; cutting off the fraction would leave only the lower one of two.

    Args:
        box: the action space.

    Raises:
        ValueError: a number has no bounds or no room to vary, or its bounds lie so far apart that the numbers between
            them cannot be computed.
    """

    def __init__(self, box: spaces.Box) -> None:
        self.dtype: np.dtype[Any] = np.dtype(box.dtype)
        self.is_whole = self.dtype.kind in "iu"
        if not (np.isfinite(box.low).all() and np.isfinite(box.high).all()):
            raise ValueError(
                f"actions are in {one_line(box)}, which has no bounds; wrap every environment in "
                "gymnasium.wrappers.RescaleAction or TransformAction, with a Box that has them"
            )
        if not (box.high > box.low).all():
            raise ValueError(f"actions are in {one_line(box)}, where a number has no room to vary")
        # Numbers of float32 are computed in float32, as in Stable-Baselines3; float16 would lose the noise.
        between = np.float64 if self.is_whole or self.dtype == np.float64 else np.float32
        self.low: NDArray[Any] = box.low.astype(between)
        self.high: NDArray[Any] = box.high.astype(between)
        with np.errstate(over="ignore"):
            self.width: NDArray[Any] = self.high - self.low
        most = MOST_INTEGERS if self.is_whole else np.finfo(between).max
        if not max(self.width.max(), abs(self.low).max(), abs(self.high).max()) <= most:
            raise ValueError(
                f"actions are in {one_line(box)}, whose bounds lie too far apart: they may differ by {most:.3g} at "
                "most; wrap every environment in gymnasium.wrappers.TransformAction, with narrower bounds"
            )

    def __call__(self, actions: NDArray[np.float32]) -> NDArray[Any]:
        """The actions (N, ...) in the Box for numbers (N, ...) from -1 to 1."""
        scaled: NDArray[Any] = self.low + 0.5 * (actions + 1) * self.width
        if self.is_whole:
            np.rint(scaled, out=scaled)
        # Rounding may have led a last digit outside.
        within: NDArray[Any] = np.minimum(np.maximum(scaled, self.low), self.high)
        return within.astype(self.dtype)


class OwnActions:
    """Tells each task's own actions from those that it lacks, by the task's one-hot in an observation.

    Args:
        counts: how many actions the task at each place of the one-hot has; its actions are the first ones.
        num_actions: A, the largest of these.
        rows: how observations are laid out.
        device: where the networks are.
    """

    def __init__(
        self, counts: Sequence[int], num_actions: int, rows: ObservationRows, device: torch.device | str = "cpu"
    ) -> None:
        self._rows = rows
        self._counts = torch.tensor(counts, device=device)  # (places,)
        self._lacking = torch.arange(num_actions, device=device) >= self._counts[:, None]  # (places, A)

    def only(self, values: Tensor, rows: Tensor) -> Tensor:
        """The action values (N, A) with minus infinity for actions that the tasks of `rows` (N, ...) lack."""
        return values.masked_fill(self._lacking[self._places(rows)], -torch.inf)

    def over(self, values: Values) -> Values:
        """A function from rows to action values like `values`, in which actions that a task lacks have no value."""
        return partial(self._only_of, values)

    def _only_of(self, values: Values, rows: Tensor) -> Tensor:
        return self.only(values(rows), rows)

    def counts(self, rows: Tensor) -> NDArray[np.int64]:
        """How many actions the tasks of `rows` (N, ...) have, (N,)."""
        found: NDArray[np.int64] = self._counts[self._places(rows)].numpy(force=True)
        return found

    def _places(self, rows: Tensor) -> Tensor:
        return self._rows.one_hots(rows).argmax(1)


def counts_of_places(
    counts: Sequence[int], places: Sequence[int], one_hot_size: int, num_actions: int
) -> tuple[int, ...] | None:
    """The number of actions at each place of the one-hot; None if every task has all actions.

    Args:
        counts: how many actions each task has.
        places: the tasks' places in the one-hot. At a place of no task all actions count.
        one_hot_size: the length of the one-hot.
        num_actions: A.

    Raises:
        ValueError: tasks have different numbers of actions, and observations do not hold the task.
    """
    if all(count == num_actions for count in counts):
        return None
    if not one_hot_size:
        raise ValueError(
            f"the tasks have {', '.join(map(str, counts))} actions, and without the task in its observations an agent "
            "cannot know which it may take: use the variant 'aware'"
        )
    at = dict(zip(places, counts, strict=True))
    return tuple(at.get(place, num_actions) for place in range(one_hot_size))
