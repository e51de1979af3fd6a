"""The actions that a task has, where several tasks of one agent have different numbers of actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.rl.observations import ObservationRows

Values = Callable[[Tensor], Tensor]


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
