"""Static weights: fixed ones, chosen by hand or by a search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, Scale
from mtrl.gradients import TaskGradients
from mtrl.limits import check_number


class StaticWeights(Balancer):
    """`c_i = weights_i`, the same at every call.

    The baseline that surveys find hard to beat once its weights are tuned: Xin et al., "Do Current Multi-Task
    Optimization Methods in Deep Learning Even Help?" (2022), https://arxiv.org/abs/2209.11379. It has no state, and
    losses may have any sign.

    Args:
        num_tasks: T; if left out, it is the number of weights.
        weights: one number for each task, at least 0. Weights that sum to T keep the scale of the sum over tasks.
            Default: 1 for every task, as `EqualWeights`.
        scale: see `Balancer`.

    Diagnostics, per task: `weight`, the coefficients.

    Raises:
        ValueError: a weight is negative or not finite, all are 0, or there are not `num_tasks` of them.
    """

    looks_at = "nothing"

    def __init__(
        self, num_tasks: int | None = None, *, weights: Sequence[float] | None = None, scale: Scale = "sum"
    ) -> None:
        super().__init__(len(weights) if num_tasks is None and weights is not None else num_tasks, scale=scale)
        self.weights: tuple[float, ...] | None = None
        if weights is None:
            return
        self.weights = tuple(check_number(f"weights[{i}]", weight, least=0) for i, weight in enumerate(weights))
        if len(self.weights) != self.num_tasks:
            raise ValueError(f"got {len(self.weights)} weights for {self.num_tasks} tasks")
        if not any(self.weights):
            raise ValueError("weights are all 0; at least one must be above 0")

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """The weights of the tasks that are there."""
        if self.weights is None:
            weights = [1.0] * gradients.num_tasks
        else:
            weights = [self.weights[gradients.task(row)] for row in range(gradients.num_tasks)]
        coefficients = torch.tensor(weights, dtype=gradients.dtype, device=gradients.device)
        return Balance(coefficients, diagnostics={"weight": coefficients})
