"""How large the rewards of each task are, so that tasks with rewards of different sizes can be learned side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.states import Like, check_form

SAME = 1e-6  # returns whose deviation is a smaller share of their mean count as equal: the rest is rounding


class RewardScales:
    """Keeps a running deviation of each task's discounted return, by which the task's rewards are divided.

    The discounted return of a column is R = gamma R + reward, and begins at 0 in each episode, as in `VecNormalize` of
    Stable-Baselines3. The deviation is that of all values which R had after a step in a column of the task, from the
    first step on. Unlike there, every task has a deviation of its own, no value is clipped, and nothing is added to the
    deviation: rewards that are all multiplied by the same factor come out the same. The mean is not subtracted, because
    this would change which policy is best.

    Args:
        num_tasks: T.
        gamma: discount per step.

    Attributes:
        count: how many values of R there were, of each task, (T,).
        mean: their mean, (T,).
        squares: the sum of their squared distances from the mean, (T,).
        returns: R of each of the N columns in its present episode, (N,); empty before the first step.
    """

    def __init__(self, num_tasks: int, gamma: float) -> None:
        self.gamma = gamma
        self.count = np.zeros(num_tasks)
        self.mean = np.zeros(num_tasks)
        self.squares = np.zeros(num_tasks)
        self.returns = np.zeros(0)

    def add(self, rewards: NDArray[np.float32], dones: NDArray[np.bool_], task_of_column: NDArray[np.int64]) -> None:
        """Add one step of all N columns.

        A step with a reward that is not finite is left out: it would spoil the deviation for good.

        Args:
            rewards: the rewards of the step, (N,).
            dones: whether the episode ended with the step, (N,).
            task_of_column: the place of each column's task, (N,), from 0 to T - 1. Every task has a column.
        """
        if len(self.returns) != len(rewards):
            self.returns = np.zeros(len(rewards))
        if np.isfinite(rewards).all():
            self.returns = self.gamma * self.returns + rewards
            # Chan et al. 1983: the moments of two sets together, from the moments of each.
            more = np.bincount(task_of_column)
            mean = np.bincount(task_of_column, self.returns) / more
            total, shift = self.count + more, mean - self.mean
            squares = np.bincount(task_of_column, (self.returns - mean[task_of_column]) ** 2)
            self.squares += squares + shift**2 * self.count * more / total
            self.mean += shift * more / total
            self.count = total
        self.returns[dones] = 0

    def forget_unfinished(self) -> None:
        """Begin the returns of all columns anew, because the environments have been reset."""
        self.returns = np.zeros(0)

    @property
    def divisors(self) -> NDArray[np.float64]:
        """The numbers (T,) by which rewards are divided.

        They are the deviations. Where a task's returns have not differed yet, it is their size, and 1 where they are 0.
        """
        deviations = np.sqrt(self.squares / np.maximum(self.count, 1))
        size = np.abs(self.mean)
        return np.where(deviations > SAME * size, deviations, np.where(size > 0, size, 1.0))

    def scale(self, rewards: Tensor) -> Tensor:
        """The rewards (T * B,) of B transitions of each task, task-major, divided by the task's present deviation."""
        divisors = torch.as_tensor(self.divisors, dtype=rewards.dtype, device=rewards.device)
        return (rewards.view(len(divisors), -1) / divisors[:, None]).flatten()

    def state_dict(self) -> dict[str, Any]:
        """The moments of the returns, which a saved model holds. `returns` is not part of it."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is not that of as many tasks, or holds a number that cannot be.
        """
        positive = Like(self.count, least=0)
        check_form("reward_scales", state, {"count": positive, "mean": Like(self.mean), "squares": positive})
        self.count, self.mean, self.squares = (state[name].copy() for name in ("count", "mean", "squares"))
