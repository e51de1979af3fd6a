"""Actions that lie in a Box with bounds, and those that a task has where tasks have different numbers of actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

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


def number_of_actions(space: spaces.Space[Any]) -> int:
    """How many actions there are in a Discrete space, or how many numbers an action in a Box has."""
    return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(cast(spaces.Box, space).shape))


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

    Actions are those of a Discrete space, or the numbers of which an action in a Box consists.

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

    def mask(self, rows: Tensor) -> Tensor:
        """1 for the actions that the tasks of `rows` (N, ...) have, and 0 for those that they lack, (N, A)."""
        return (~self._lacking[self._places(rows)]).float()

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


def own_actions_of(agent: Any) -> OwnActions | None:
    """What tells the actions of the tasks of a multi-task agent apart; None if every task has all actions.

    At a place of the one-hot that belongs to no task of the agent, all actions count.

    Raises:
        ValueError: tasks have different numbers of actions, and observations do not hold the task.
    """
    counts, num_actions = agent.actions_of_tasks, number_of_actions(agent.action_space)
    if all(count == num_actions for count in counts):
        return None
    if not agent.one_hot_size:
        raise ValueError(
            f"the tasks have {', '.join(map(str, counts))} actions, and without the task in its observations an agent "
            "cannot know which it may take: use the variant 'aware'"
        )
    at = dict(zip(agent.one_hot_places, counts, strict=True))
    of_places = [at.get(place, num_actions) for place in range(agent.one_hot_size)]
    return OwnActions(of_places, num_actions, agent.rows, agent.device)
