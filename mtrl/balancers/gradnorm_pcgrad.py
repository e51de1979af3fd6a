"""GradNorm's magnitudes with PCGrad's directions."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, Deferred, Scale
from mtrl.balancers.gradnorm import GradNorm, Progress, ReturnRange, WeightSteps
from mtrl.balancers.pcgrad import PCGrad
from mtrl.gradients import TaskGradients


class GradNormPCGrad(Balancer):
    """GradNorm weighs the gradients by their magnitudes, then PCGrad removes conflicts between their directions.

    With GradNorm's weights w, PCGrad works on the rows w_i g_i, that is, on the Gramian w_i w_j G_ij. Its coefficients
    c_i for these rows are the coefficients c_i w_i for the gradients. The combination is this project's own.

    Args:
        num_tasks: T.
        alpha: see `GradNorm`.
        lr: see `GradNorm`.
        warmup_steps: see `GradNorm`.
        weight_floor: see `GradNorm`.
        initial_loss_floor: see `GradNorm`.
        weight_steps: see `GradNorm`.
        progress: see `GradNorm`.
        return_range: see `GradNorm`.
        seed: the seed of PCGrad's random order; see `RandomBalancer`. Default 0.
        scale: see `Balancer`.

    Diagnostics: those of both methods; `weight` holds the coefficients and `gradnorm_weight` GradNorm's weights.

    Raises:
        ValueError: an argument is out of range.
    """

    looks_at = "gramian"

    for_any_losses = "progress='return'"

    def __init__(
        self,
        num_tasks: int,
        *,
        alpha: float = 1.5,
        lr: float = 0.01,
        warmup_steps: int = 100,
        weight_floor: float = 0.1,
        initial_loss_floor: float = 0.01,
        weight_steps: WeightSteps = "log",
        progress: Progress = "loss",
        return_range: ReturnRange | None = None,
        seed: int = 0,
        scale: Scale = "sum",
    ) -> None:
        super().__init__(num_tasks, scale=scale)
        self.gradnorm = GradNorm(
            num_tasks,
            alpha=alpha,
            lr=lr,
            warmup_steps=warmup_steps,
            weight_floor=weight_floor,
            initial_loss_floor=initial_loss_floor,
            weight_steps=weight_steps,
            progress=progress,
            return_range=return_range,
        )
        self.pcgrad = PCGrad(num_tasks, seed=seed)
        self.needs_positive_losses = self.gradnorm.needs_positive_losses

    def reset(self) -> None:
        """Reset both methods."""
        self.gradnorm.reset()
        self.pcgrad.reset()

    def record_returns(self, returns: Tensor) -> None:
        """Tell GradNorm the returns, for `progress="return"`."""
        self.gradnorm.record_returns(returns)

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Weigh the rows by GradNorm and project them by PCGrad."""
        magnitudes = self.gradnorm.balance(gradients, losses)
        weights = magnitudes.coefficients
        w, G = weights.numpy(force=True), gradients.gramian.numpy(force=True)
        directions = self.pcgrad.balance_gramian(torch.from_numpy(G * w * w[:, None]))
        coefficients = directions.coefficients.to(weights.device) * weights
        own = {"weight": coefficients, "gradnorm_weight": weights}
        diagnostics = Deferred(lambda: {**magnitudes.diagnostics, **directions.diagnostics, **own})
        return Balance(coefficients, diagnostics=diagnostics)
