"""Random loss weighting: the baseline that shows whether a method's weights do more than noise."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.balancers.base import Balance
from mtrl.balancers.random_balancer import RandomBalancer
from mtrl.gradients import TaskGradients


class RandomLossWeighting(RandomBalancer):
    """`c = T softmax(z)` with `z_i ~ N(0, 1)`, drawn anew at each call.

    Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning" (2022),
    https://arxiv.org/abs/2111.10603. The coefficients sum to T, so that on average the update is the sum over
    tasks. Losses may have any sign.

    Diagnostics, per task: `weight`, the coefficients.
    """

    looks_at = "nothing"

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Draw the weights."""
        draws = torch.from_numpy(self.generator.standard_normal(gradients.num_tasks))
        weights = gradients.num_tasks * draws.softmax(0).to(losses.device)
        return Balance(weights, diagnostics={"weight": weights})
