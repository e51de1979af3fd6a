"""What happens when a number in training is NaN or infinite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtrl.gradients import NonFiniteGradientError
from mtrl.rl.settings import OnNonFinite

Array = NDArray[np.float32]


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity in training. The message is one line with the task, the quantity, its value and the step."""


class FiniteGuard:
    """Checks the numbers that environments and updates produce, and raises an error or counts what it leaves out.

    Args:
        policy: `"raise"` a `NonFiniteError`, or `"skip"`: leave the step or the update out, and count it.
        tasks: names of the tasks.

    Attributes:
        skipped: how many steps and updates were left out, by their names in the logs (`train/skipped_steps`,
            `train/skipped_updates`).
    """

    def __init__(self, policy: OnNonFinite, tasks: Sequence[str]) -> None:
        self.policy = policy
        self.tasks = tuple(tasks)
        self.skipped: Counter[str] = Counter()

    def step_is_finite(
        self, before: Array, after: Array, rewards: Array, env_step: int, task_of_column: NDArray[np.int64]
    ) -> bool:
        """Whether all numbers of a step of N columns are finite, so that the agent may learn from it.

        Args:
            before: observations (N, O).
            after: the observations that followed, (N, O).
            rewards: (N,).
            env_step: the step's number, for the message.
            task_of_column: the place of each column's task, (N,), for the message.

        Raises:
            NonFiniteError: a number is not finite, and the policy is to raise.
        """
        # The sum is not finite if one of its terms is not, and costs little. Because finite numbers may overflow in the
        # sum, each column is looked at before anything is reported.
        if math.isfinite(float(before.sum()) + float(after.sum()) + float(rewards.sum())):
            return True
        for column in range(len(rewards)):
            for quantity, values in (
                ("observation", before[column]),
                ("observation", after[column]),
                ("reward", rewards[column : column + 1]),
            ):
                bad = values[~np.isfinite(values)]
                if len(bad):
                    task = task_of_column[column]
                    among = column - int(np.argmax(task_of_column == task))
                    place = f"environment {among} of task {self.tasks[task]}"
                    self._leave_out("train/skipped_steps", f"{place} gave the {quantity} {bad[0]} at step {env_step}")
                    return False
        return True

    def check(self, quantity: str, values: Sequence[float]) -> None:
        """Raise `FloatingPointError` if one of T values is not finite; the message names the quantity and the task."""
        if math.isfinite(sum(values)):
            return
        for task, value in zip(self.tasks, values, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"{quantity} of task {task} is {value}")

    def update_failed(self, error: FloatingPointError, update: int, env_step: int) -> None:
        """Report an update that was not made.

        Args:
            error: the reason.
            update: the update's number.
            env_step: the environment step at which it was due.

        Raises:
            NonFiniteError: the policy is to raise.
        """
        reason: object = error
        if isinstance(error, NonFiniteGradientError) and error.task is not None:  # it knows the number, not the name
            reason = f"the gradient of task {self.tasks[error.task]} is not finite"
        self._leave_out("train/skipped_updates", f"{reason} in update {update}, at step {env_step}")

    def _leave_out(self, what: str, message: str) -> None:
        if self.policy == "raise":
            raise NonFiniteError(message)
        self.skipped[what] += 1
