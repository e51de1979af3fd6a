"""What happens when a number in training is NaN or infinite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

OnNonFinite = Literal["raise", "skip"]
Array = NDArray[np.float32]


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity in training. The message is one line: the task, the quantity, its value and the step."""


class FiniteGuard:
    """Looks at what environments and updates give, and raises or counts what is not finite.

    Args:
        policy: `"raise"` a `NonFiniteError`, or `"skip"`: what is not finite is left out and counted.
        tasks: names of the tasks.

    Attributes:
        skipped: how often each kind of thing was left out, by its name in the logs (`train/skipped_steps`,
            `train/skipped_updates`).
    """

    def __init__(self, policy: OnNonFinite, tasks: Sequence[str]) -> None:
        self.policy = policy
        self.tasks = tuple(tasks)
        self.skipped: Counter[str] = Counter()

    def step_is_finite(self, before: Array, after: Array, rewards: Array, env_step: int) -> bool:
        """Whether a step of T * K columns may be learned from.

        Args:
            before: observations (T * K, O).
            after: the observations that followed, (T * K, O).
            rewards: (T * K,).
            env_step: for the message.

        Raises:
            NonFiniteError: it may not, and the policy is to raise.
        """
        # A sum sees nearly every case at little cost. Finite numbers may overflow in it: then each column is looked at.
        if math.isfinite(float(before.sum()) + float(after.sum()) + float(rewards.sum())):
            return True
        each = len(rewards) // len(self.tasks)
        for column in range(len(rewards)):
            for quantity, values in (
                ("observation", before[column]),
                ("observation", after[column]),
                ("reward", rewards[column : column + 1]),
            ):
                bad = values[~np.isfinite(values)]
                if len(bad):
                    place = f"environment {column % each} of task {self.tasks[column // each]}"
                    self._leave_out("train/skipped_steps", f"{place} gave the {quantity} {bad[0]} at step {env_step}")
                    return False
        return True

    def check(self, quantity: str, values: Sequence[float]) -> None:
        """Raise `FloatingPointError` naming the quantity and the first task whose value, of T, is not finite."""
        if math.isfinite(sum(values)):
            return
        for task, value in zip(self.tasks, values, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"{quantity} of task {task} is {value}")

    def update_failed(self, error: FloatingPointError, update: int, env_step: int) -> None:
        """An update was not made because of `error`.

        Raises:
            NonFiniteError: the policy is to raise.
        """
        self._leave_out("train/skipped_updates", f"{error} in update {update}, at step {env_step}")

    def _leave_out(self, what: str, message: str) -> None:
        if self.policy == "raise":
            raise NonFiniteError(message)
        self.skipped[what] += 1
