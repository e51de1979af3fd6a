"""Equal weights: the sum of the task gradients, which published surveys find hard to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer
from mtrl.gradients import TaskGradients


class EqualWeights(Balancer):
    """`c_i = 1`, or `1/T` with `scale="mean"`.

    The baseline of every comparison: Kurin et al., "In Defense of the Unitary Scalarization for Deep Multi-Task
    Learning" (2022), https://arxiv.org/abs/2201.04122. It has no state, and losses may have any sign.
    """

    looks_at = "nothing"

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """A coefficient of 1 for every task."""
        coefficients = torch.ones(gradients.num_tasks, dtype=gradients.dtype, device=gradients.device)
        return Balance(coefficients, diagnostics={"weight": coefficients})
