"""AIM as its public code trains it, without this project's look-ahead and without scaled terms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtrl import Balance, Balancer
from mtrl.gradients import TaskGradients


class PublishedAIM(Balancer):
    r"""AIM with the policy loss of its public code, in raw gradients.

        w_ij = sigmoid(k (tau_ij - cos(g_i, g_j))),
        g = sum_j beta_j g_j,   beta_j = 1 - sum_{i != j} w_ij G_ij / G_jj,
        L_guide(theta) + 0.01 (|g| - sum_i n_i)^2 - 0.1 sum_i alpha_i (g.g_i),   alpha_i = L_i / sum_j L_j.

    The guidance loss is evaluated at the present parameters theta, which do not depend on tau, so that its gradient
    with respect to tau is zero. It is therefore left out here, and no threshold changes for that. The guidance rows are
    held out all the same. Adam trains tau at 0.01.

    Args:
        num_tasks: T.

    Diagnostics: `tau`, `intervention` (w) and `cosine`, each (T, T); see `mtrl.AIM`.
    """

    looks_at = "gramian"
    wants_guidance = True
    needs_positive_losses = True
    tau: Tensor  # (T, T)

    k = 10.0
    magnitude_weight = 0.01
    progress_weight = 0.1

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.register_buffer("tau", torch.zeros(num_tasks, num_tasks, dtype=torch.float64))
        self.tau.requires_grad_()
        self._adam = torch.optim.Adam([self.tau], lr=0.01)

    def set_guidance(self, gradient: Callable[[Tensor], Tensor] | None, eta: float = 1.0) -> None:
        """Take no notice: the guidance loss at the present parameters says nothing about tau."""

    @torch.enable_grad()
    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Answer with the coefficients beta for the present thresholds, and let the policy take a step."""
        G = gradients.gramian.detach().to("cpu", torch.float64)
        n = G.diagonal().sqrt()
        cosine = G / (n[:, None] * n + 1e-16)
        tau = self.tau.detach().clone()
        w = torch.sigmoid(self.k * (self.tau - cosine)) * (1 - torch.eye(len(G), dtype=G.dtype))
        beta = 1 - (w * G / (G.diagonal() + 1e-16)).sum(0)
        length = (beta @ G @ beta).clamp(min=0).add(1e-30).sqrt()
        alpha = losses.double() / (losses.double().sum() + 1e-8)
        loss = self.magnitude_weight * (length - n.sum()) ** 2 - self.progress_weight * alpha @ (G @ beta)
        (self.tau.grad,) = torch.autograd.grad(loss, [self.tau])
        self._adam.step()
        diagnostics = {"tau": tau, "intervention": w.detach(), "cosine": cosine}
        return Balance(beta.detach().to(gradients.device), diagnostics=diagnostics)
