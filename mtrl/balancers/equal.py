"""Equal weights: the sum of the task gradients, which published surveys find hard to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer
from mtrl.gradients import TaskGradients


class EqualWeights(Balancer):
    """`c_i = 1`, or `1/T` with `scale="mean"`.

    The baseline of every comparison: Kurin et al., "In Defense of the Unitary Scalarization for Deep Multi-Task
    Learning" (2022), https://arxiv.org/abs/2201.04122. Stateless; losses may have any sign.
    """

    needs_rows = False

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """One for every task."""
        coefficients = torch.ones(gradients.num_tasks, dtype=gradients.dtype, device=gradients.device)
        return Balance(coefficients, diagnostics={"weight": coefficients})
