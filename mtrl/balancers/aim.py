"""AIM: learned thresholds decide which part of which task's gradient is removed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, Deferred, Scale
from mtrl.gradients import NonFiniteGradientError, ParameterLayout, TaskGradients, norms_of_rows
from mtrl.guidance import LookaheadGuidance

Array = NDArray[np.float64]
Thresholds = Literal["matrix", "scalar"]
Guidance = Literal["lookahead", "none"]

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's own defaults


@dataclass(frozen=True)
class _Guide:
    """What `set_guidance` was given. A copy of the balancer shares it: the model behind it is not the balancer's."""

    gradient: Callable[[Tensor], Tensor]
    eta: float

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class AIM(Balancer):
    r"""Adaptive intervention (Minot & Schneider 2025).

    A policy with one threshold tau_ij per ordered pair of tasks, or one for all, decides how much of its component
    along g_j the gradient g_i loses. With the raw rows, all at once:

        w_ij = sigmoid(k (tau_ij - cos(g_i, g_j))),
        g_i' = g_i - sum_{j != i} w_ij (g_i.g_j / |g_j|^2) g_j,   g = sum_i g_i' = sum_j beta_j g_j,
        beta_j = 1 - sum_{i != j} w_ij G_ij / G_jj.

    The update uses the thresholds as they are; then they take a step of Adam on the policy loss

        guidance_weight * L_guide(theta - eta g) / (eta N |h|) + magnitude_weight * (|g| - N)^2 / N^2
        - progress_weight * sum_i alpha_i (g.g_i) / N^2,

    with n_i = |g_i|, N = sum_i n_i, h = grad L_guide(theta - eta g) and alpha_i = L_i / sum_j L_j. Denominators, h and
    alpha are constants. As tau_ij moves beta_j alone, d/dtau_ij = -k w_ij (1 - w_ij) (G_ij / G_jj) d/dbeta_j; with
    |g|^2 = beta^T G beta and g.g_i = (G beta)_i that costs O(T^2), plus one product with J for the guidance's share:

        dL_guide/dtau_ij = eta k w_ij (1 - w_ij) (G_ij / G_jj) (g_j.h).

    Where this departs from the paper and its public codes, and why:

    * They evaluate the guidance loss at the parameters themselves, where its gradient with respect to tau is zero.
      Here it is evaluated where the update would lead, one step of size eta ahead.
    * All terms are divided by their natural scale, which changes no term's own direction: otherwise magnitude and
      progress grow with the square of the gradients' scale, and guidance shrinks with eta until it counts for nothing.

    The balancer knows no data: `set_guidance` gives it the gradient of the loss on a held-out set. **Until it is
    called there is no guidance**, and the policy learns from the other two terms.

    Args:
        num_tasks: T.
        tau: one threshold per ordered pair, `"matrix"`, or one for all, `"scalar"`; 0 at first. Default `"matrix"`.
        k: steepness of the intervention around its threshold. Default 10.
        lr: learning rate of the thresholds. Default 1e-3.
        guidance: `"lookahead"` or `"none"`. Default `"lookahead"`.
        policy_interval: updates per step of the policy, the first update included. A step with guidance costs one more
            forward and backward pass, so 10 makes long runs almost as fast as without. Default 1, as in the paper.
        guidance_weight: Default 1.
        magnitude_weight: Default 0.1.
        progress_weight: Default 0.1. If 0, losses may have any sign.
        scale: see `Balancer`.

    Diagnostics: `weight` (beta), `alignment` (T,) the cosine of each g_j with h at the last guided step of the policy
    (0 before), `tau`, `intervention` (w) and `cosine` (T, T) with row i the task that loses, and the terms
    `magnitude` and `progress`, without their weights.

    Raises:
        ValueError: an argument is out of range.
    """

    needs_gramian = True
    task_state = ("tau", "exp_avg", "exp_avg_sq", "alignment")
    tau: Tensor  # (T, T), or () with one threshold for all; so are Adam's two moments
    exp_avg: Tensor
    exp_avg_sq: Tensor
    alignment: Tensor
    updates: Tensor
    policy_steps: Tensor

    def __init__(
        self,
        num_tasks: int,
        *,
        tau: Thresholds = "matrix",
        k: float = 10.0,
        lr: float = 1e-3,
        guidance: Guidance = "lookahead",
        policy_interval: int = 1,
        guidance_weight: float = 1.0,
        magnitude_weight: float = 0.1,
        progress_weight: float = 0.1,
        scale: Scale = "sum",
    ) -> None:
        super().__init__(num_tasks, scale=scale)
        for argument, choice, choices in (
            ("tau", tau, get_args(Thresholds)),
            ("guidance", guidance, get_args(Guidance)),
        ):
            if choice not in choices:
                raise ValueError(f"unknown {argument} {choice!r}; choose from {', '.join(choices)}")
        for argument, value in (("k", k), ("lr", lr)):
            if not 0 < value < math.inf:
                raise ValueError(f"{argument} is {value}; it must be above 0 and finite")
        if policy_interval < 1:
            raise ValueError(f"policy_interval is {policy_interval}; it must be at least 1")
        for argument, value in (
            ("guidance_weight", guidance_weight),
            ("magnitude_weight", magnitude_weight),
            ("progress_weight", progress_weight),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{argument} is {value}; it must be at least 0 and finite")
        self.k = k
        self.lr = lr
        self.guidance: Guidance = guidance
        self.policy_interval = policy_interval
        self.guidance_weight = guidance_weight
        self.magnitude_weight = magnitude_weight
        self.progress_weight = progress_weight
        self.needs_positive_losses = progress_weight > 0
        self._guide: _Guide | None = None
        shape = () if tau == "scalar" else (num_tasks, num_tasks)
        for name in ("tau", "exp_avg", "exp_avg_sq"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("alignment", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("policy_steps", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `to`, `cuda`, `half`: the state is T x T, stays in float64 and stays where it is computed, on the CPU.
        return self

    def reset(self) -> None:
        """Thresholds of 0, a policy without history. The guidance stays set."""
        for buffer in self.buffers():
            buffer.zero_()

    @property
    def wants_guidance(self) -> bool:
        """Whether the thresholds learn from the guidance loss."""
        return self.guidance == "lookahead"

    def set_guidance(self, gradient: Callable[[Tensor], Tensor] | None, eta: float = 1.0) -> None:
        """Say where the guidance loss is lower.

        Args:
            gradient: takes a step (D,) and returns grad L_guide(theta - step), (D,), without side effects; see
                `LookaheadGuidance`. Both are in the order of the Jacobian's columns. None: no guidance.
            eta: the step of the update, g times eta: the learning rate of plain gradient descent.

        Raises:
            ValueError: the balancer was made without guidance, or `eta` is out of range.
        """
        if self.guidance == "none" and gradient is not None:
            raise ValueError("this balancer was made with guidance='none'")
        if not 0 < eta < math.inf:
            raise ValueError(f"eta is {eta}; it must be above 0 and finite")
        self._guide = None if gradient is None else _Guide(gradient, float(eta))

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """The coefficients beta by the thresholds as they are; then the policy's own step."""
        tau, alignment, updates = self.tau.numpy(), self.alignment.numpy(), self.updates.numpy()
        gramian = gradients.gramian
        # In units of N: m_i = n_i / N and b_j = n_j beta_j / N, so that no number depends on the gradients' scale.
        G = gramian.numpy(force=True)
        n = np.sqrt(G.diagonal())
        N = float(n.sum())
        inverse = np.array([1 / norm if norm > 0 else 0.0 for norm in n.tolist()])  # a zero row has no direction
        C = clip(G * inverse[:, None] * inverse)
        m = n / N if N > 0 else n
        w = 0.5 + 0.5 * np.tanh(0.5 * self.k * (tau - C))  # the sigmoid, without its overflow
        w.flat[:: len(n) + 1] = 0.0  # the diagonal
        removed = w * C * m[:, None]  # (T, T): what task i loses along u_j
        b = m - removed.sum(0)
        beta = torch.from_numpy(np.where(n > 0, b * (N * inverse), 1.0))

        along = C @ b  # u_i.g / N
        norm = math.sqrt(max(float(b @ along), 0.0))
        alpha = self._shares(losses)
        used = tau.copy()
        if int(updates) % self.policy_interval == 0:
            # Each |u_i.g| <= |g|: the bounds only matter where g is so near 0 that rounding errors are all there is.
            unit = clip(along / norm) if norm > 0 else np.zeros_like(along)
            by_b = 2.0 * self.magnitude_weight * (norm - 1.0) * unit - self.progress_weight * (C @ (alpha * m))
            if self._guide is not None:
                alignment[:] = self._align(self._guide, gradients, beta) * inverse
                by_b -= self.guidance_weight * alignment
            self._step(-self.k * (1.0 - w) * removed * by_b)
        updates += 1
        aligned = alignment.copy()
        diagnostics = Deferred(
            lambda: {
                "weight": beta,
                "tau": torch.from_numpy(used),
                "intervention": torch.from_numpy(w),
                "cosine": torch.from_numpy(C),
                "magnitude": torch.tensor((norm - 1.0) ** 2 if N > 0 else 0.0, dtype=torch.float64),
                "progress": torch.tensor(alpha @ (m * along), dtype=torch.float64),
                "alignment": torch.from_numpy(aligned),
            }
        )
        return Balance(beta.to(gramian.device), diagnostics=diagnostics)

    def shared_parameters(self, parameters: Iterable[Tensor] | None) -> Iterable[Tensor] | None:
        """With guidance, the shared parameters and their order are the guidance's.

        Raises:
            ValueError: `parameters` are not those of the guidance, or are left out where the guidance is a function of
                the user's own, whose order is unknown.
        """
        guidance = None if self._guide is None else self._guide.gradient
        if isinstance(guidance, LookaheadGuidance):
            known = guidance.layout.parameters
            if parameters is not None:
                given = ParameterLayout(p for p in parameters if p.requires_grad).parameters
                if [id(p) for p in given] != [id(p) for p in known]:
                    raise ValueError("`parameters` are not those of the guidance, in its order")
            return known
        if guidance is not None and parameters is None:
            raise ValueError("pass `parameters`, in the order of the guidance gradient's columns")
        return parameters

    def _shares(self, losses: Tensor) -> Array:
        """The alpha (T,): each task's share of the loss; equal if all are 0, and 0 if progress does not count."""
        if self.progress_weight == 0:
            return np.zeros(len(losses))
        values = np.array(losses.tolist())
        total = float(values.sum())
        shares: Array = values / total if total > 0 else np.full(len(values), 1 / len(values))
        return shares

    def _align(self, guide: _Guide, gradients: TaskGradients, beta: Tensor) -> Array:
        """g_j.h / |h| (T,), with h the guidance gradient one step ahead; 0 where h is."""
        eta = guide.eta / gradients.num_tasks if self.scale == "mean" else guide.eta
        h = guide.gradient(eta * gradients.combine(beta)).detach()
        if h.shape != (gradients.size,):
            raise ValueError(
                f"the guidance gradient has shape {tuple(h.shape)}; it must be one number per shared parameter, "
                f"({gradients.size},)"
            )
        if gradients.ranks.count() > 1:  # each process has its own held-out data
            h = gradients.ranks.mean_(h.clone())
        norm = norms_of_rows(h[None]).item()
        if not math.isfinite(norm):
            raise NonFiniteGradientError("the gradient of the guidance loss is not finite")
        direction = h if norm == 0 else h / norm
        products: Array = gradients.dot(direction.to(gradients.device, gradients.dtype)).cpu().numpy()
        return products

    def _step(self, gradient: Array) -> None:
        """One step of Adam on the thresholds along `gradient` (T, T)."""
        tau, average, squares = self.tau.numpy(), self.exp_avg.numpy(), self.exp_avg_sq.numpy()
        if tau.ndim == 0:
            gradient = gradient.sum()
        policy_steps = self.policy_steps.numpy()
        policy_steps += 1
        steps = int(policy_steps)
        average += (1.0 - BETA1) * (gradient - average)
        squares += (1.0 - BETA2) * (gradient * gradient - squares)
        scale = np.sqrt(squares / (1.0 - BETA2**steps)) + EPS
        tau -= self.lr / (1.0 - BETA1**steps) * average / scale


def clip(cosines: Array) -> Array:
    """Rounding errors may have carried them beyond -1 and 1."""
    clipped: Array = np.minimum(np.maximum(cosines, -1.0), 1.0)  # a third of what `np.clip` takes
    return clipped
