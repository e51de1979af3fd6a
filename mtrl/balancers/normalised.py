"""Normalised gradients: all tasks pull with the same force, and nothing else is done."""

from __future__ import annotations

import math

from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, vector
from mtrl.gradients import TaskGradients


def equal_lengths(gradients: TaskGradients) -> list[float]:
    """The coefficients (T,) that give every gradient the mean of their lengths; 0 for a zero gradient.

    Gradients that all have one direction then combine to the length of their sum.
    """
    norms = [math.sqrt(square) for square in gradients.squares]
    mean = sum(norms) / max(sum(norm > 0 for norm in norms), 1)
    return [mean / norm if norm > 0 else 0.0 for norm in norms]


class NormalisedGradients(Balancer):
    """`c_i = mean_j |g_j| / |g_i|`: the sum of unit gradients, on the scale of the sum of the gradients.

    The control for every method that looks at the directions of the task gradients: it shows what equal lengths do
    alone. It is RGB without rotation, and GradNorm with alpha = 0 if its weights followed at once. A task with a zero
    gradient is treated as missing. It has no state, and losses may have any sign.

    Diagnostics, per task: `weight`, the coefficients.
    """

    looks_at = "rows"

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Give every gradient the same length."""
        weight = vector(equal_lengths(gradients)).to(gradients.device)
        return Balance(weight, diagnostics={"weight": weight})
