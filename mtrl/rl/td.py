"""Temporal-difference losses and their derivatives, written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

TDLoss = Literal["huber", "mse"]


@dataclass(frozen=True)
class TDError:
    """The loss of an error e = value - target, meaned over each task's rows.

    Args:
        num_tasks: T.
        loss: `"huber"`: e^2 / 2 up to |e| = delta and delta (|e| - delta / 2) beyond; or `"mse"`: e^2.
        delta: of the Huber loss. It is in units of returns: errors beyond it, such as an unforeseen crash makes, weigh
            no more than delta.
    """

    num_tasks: int
    loss: TDLoss = "huber"
    delta: float = 1.0

    def losses(self, values: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each task, (T,), for autograd to differentiate.

        Args:
            values: action values (T * B, A), task-major.
            actions: which of them were taken, (T * B,).
            targets: what those should be, (T * B,).
        """
        taken = values.gather(1, actions.unsqueeze(1)).squeeze(1)
        if self.loss == "huber":
            per_row = F.huber_loss(taken, targets, reduction="none", delta=self.delta)
        else:
            per_row = F.mse_loss(taken, targets, reduction="none")
        return per_row.view(self.num_tasks, -1).mean(1)

    def losses_and_slope(self, values: Tensor, actions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """`losses` (T,), and their derivative with respect to each row's action values, (T * B, A).

        The arguments are not part of a graph.
        """
        index = actions.unsqueeze(1)
        error = values.gather(1, index).squeeze(1).sub_(targets)
        if self.loss == "huber":
            step = error.clamp(-self.delta, self.delta)  # the derivative
            per_row = error.sub_(step, alpha=0.5).mul_(step)
        else:
            step = 2.0 * error
            per_row = error.square_()
        per_task = per_row.view(self.num_tasks, -1)
        slope = torch.zeros_like(values).scatter_(1, index, step.div_(per_task.shape[1]).unsqueeze(1))
        return per_task.mean(1), slope
