"""The loss of the temporal-difference error, with and without autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from mtrl.rl.settings import TDLossName


@dataclass(frozen=True)
class TDLoss:
    """Loss of the temporal-difference error e = value - target, averaged over the rows of each task.

    Args:
        num_tasks: T.
        name: `"huber"`: e^2 / 2 up to |e| = delta and delta (|e| - delta / 2) beyond; or `"mse"`: e^2.
        delta: the limit of the Huber loss, in units of returns. No error has a derivative above delta, so that a rare
            large error, such as that of an unforeseen crash, does not dominate the batch.
    """

    num_tasks: int
    name: TDLossName = "huber"
    delta: float = 1.0

    def __call__(self, values: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each task, (T,), for autograd to differentiate.

        Args:
            values: action values (T * B, A), task-major.
            actions: the actions taken, (T * B,).
            targets: the values that these actions should have, (T * B,).
        """
        taken = values.gather(1, actions.unsqueeze(1)).squeeze(1)
        if self.name == "huber":
            per_row = F.huber_loss(taken, targets, reduction="none", delta=self.delta)
        else:
            per_row = F.mse_loss(taken, targets, reduction="none")
        return per_row.view(self.num_tasks, -1).mean(1)

    def losses_and_slope(self, values: Tensor, actions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (T,), and the derivative of each row's loss with respect to its action values, (T * B, A).

        The arguments are those of a call. They must not be part of a graph.
        """
        index = actions.unsqueeze(1)
        error = values.gather(1, index).squeeze(1).sub_(targets)
        if self.name == "huber":
            derivative = error.clamp(-self.delta, self.delta)
            per_row = error.sub_(derivative, alpha=0.5).mul_(derivative)
        else:
            derivative = 2.0 * error
            per_row = error.square_()
        per_task = per_row.view(self.num_tasks, -1)
        slope = torch.zeros_like(values).scatter_(1, index, derivative.div_(per_task.shape[1]).unsqueeze(1))
        return per_task.mean(1), slope
