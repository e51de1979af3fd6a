"""Temporal-difference losses and their derivatives, written out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

TDLoss = Literal["huber", "mse"]


def td_losses(values: Tensor, actions: Tensor, targets: Tensor, num_tasks: int, loss: TDLoss = "huber") -> Tensor:
    """Mean loss of each task, (T,), for autograd to differentiate.

    Args:
        values: action values (T * B, A), task-major.
        actions: which of them were taken, (T * B,).
        targets: what those should be, (T * B,).
        num_tasks: T.
        loss: of an error e: `"huber"` e^2 / 2 up to 1 and |e| - 1/2 beyond, or `"mse"` e^2.
    """
    taken = values.gather(1, actions.unsqueeze(1)).squeeze(1)
    of_error = F.smooth_l1_loss if loss == "huber" else F.mse_loss
    per_row: Tensor = of_error(taken, targets, reduction="none")
    return per_row.view(num_tasks, -1).mean(1)


def td_losses_and_slope(
    values: Tensor, actions: Tensor, targets: Tensor, num_tasks: int, loss: TDLoss = "huber"
) -> tuple[Tensor, Tensor]:
    """`td_losses` (T,), and their derivative with respect to each row's action values, (T * B, A).

    The arguments are not part of a graph.
    """
    index = actions.unsqueeze(1)
    error = values.gather(1, index).squeeze(1).sub_(targets)
    if loss == "huber":
        step = error.clamp(-1.0, 1.0)  # the derivative
        per_row = error.sub_(step, alpha=0.5).mul_(step)
    else:
        step = 2.0 * error
        per_row = error.square_()
    per_task = per_row.view(num_tasks, -1)
    slope = torch.zeros_like(values).scatter_(1, index, step.div_(per_task.shape[1]).unsqueeze(1))
    return per_task.mean(1), slope
