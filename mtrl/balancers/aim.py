"""AIM: learned thresholds decide how much of each conflict between two tasks' gradients is removed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, Deferred, Scale
from mtrl.gradients import (
    NonFiniteGradientError,
    ParameterLayout,
    Parameters,
    TaskGradients,
    as_parameters,
    norms_of_rows,
)
from mtrl.guidance import GuidanceLoss, LookaheadGuidance
from mtrl.limits import check_choice, check_number
from mtrl.states import Like, check_form

Array = NDArray[np.float64]
Thresholds = Literal["matrix", "scalar"]
Guidance = Literal["lookahead", "none"]

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's own defaults
OPEN = 0.5  # the first threshold of a gate; 1 halves the task's gradient


@dataclass(frozen=True)
class _Guide:
    """The arguments of `set_guidance`. Copies of a balancer share them, as they share the model behind them."""

    gradient: Callable[[Tensor], Tensor]
    eta: float

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class AIM(Balancer):
    r"""Adaptive intervention (Minot & Schneider 2025).

    A policy has one threshold tau_ij for each ordered pair of tasks, or one for all pairs. It decides how much of the
    component of g_i along g_j is removed from g_i. All pairs are treated at once, with the raw rows:

        w_ij = sigmoid(k (tau_ij - cos(g_i, g_j))),
        g_i' = g_i - sum_{j != i} w_ij (g_i.g_j / |g_j|^2) g_j,   g = sum_i g_i' = sum_j beta_j g_j,
        beta_j = 1 - sum_{i != j} w_ij G_ij / G_jj.

    The update uses the present thresholds. Afterwards the thresholds take a step of Adam on the policy loss

        guidance_weight * L_guide(theta - eta g) / (eta N |h|) + magnitude_weight * (|g| - N)^2 / N^2
        - progress_weight * sum_i alpha_i (g.g_i) / N^2,

    with n_i = |g_i|, N = sum_i n_i, h = grad L_guide(theta - eta g) and alpha_i = L_i / sum_j L_j. Denominators, h and
    alpha are held constant. Since tau_ij changes beta_j alone, d/dtau_ij = -k w_ij (1 - w_ij) (G_ij / G_jj) d/dbeta_j.
    With |g|^2 = beta^T G beta and g.g_i = (G beta)_i that costs O(T^2), and the guidance one product with J besides:

        dL_guide/dtau_ij = eta k w_ij (1 - w_ij) (G_ij / G_jj) (g_j.h).

    **Gates.** The pairwise thresholds remove only what two gradients have in common. Gradients of many parameters are
    nearly orthogonal, so beta_j stays near 1, and no tau_ij shuts out a task of pure noise. With `gate=True` the sums
    run over j = i as well. The cosine of g_i with itself is 1, so that

        w_ii = sigmoid(k (tau_ii - 1)),   beta_j = 1 - w_jj - sum_{i != j} w_ij G_ij / G_jj:

    the threshold tau_ii scales the whole gradient of task i by 1 - w_ii. It begins at 0.5, where 0.7 % is removed with
    k = 10; 1 removes half. It learns by the same formulas, with G_jj / G_jj = 1.

    Where this departs from the paper and its public codes, and why:

    * The public codes evaluate the guidance loss at the present parameters, where its gradient with respect to tau is
      zero. Here it is evaluated one step of size eta ahead, where the update would lead.
    * The paper has no gates. They are this project's, and off unless they are asked for.
    * Each term is divided by its natural scale, which does not change the direction of its gradient. Otherwise the
      magnitude and progress terms would grow with the square of the gradients' scale, and the guidance term would
      vanish with eta.

    The balancer has no data of its own: `set_guidance` gives it the gradient of the loss on a held-out set. **Until
    `set_guidance` is called there is no guidance**, and the policy learns from the other two terms.

    Args:
        num_tasks: T.
        tau: `"matrix"` for one threshold per ordered pair, `"scalar"` for one threshold for all pairs. Thresholds start
            at 0. Default `"matrix"`.
        gate: whether the diagonal of tau is in use, as a gate for each task. It needs `tau="matrix"`. The
            gates of `experiments.studies` learn with `guidance_loss="log_sum"` and 0.01 as `magnitude_weight` and
            `progress_weight`; a large magnitude weight holds them open. Default False.
        k: how steeply the intervention w rises around its threshold. Default 10.
        lr: learning rate of the thresholds. Default 1e-3.
        guidance: `"lookahead"` or `"none"`. Default `"lookahead"`.
        guidance_loss: how the agents and programs of this project make one guidance loss of the held-out losses of the
            tasks: `"sum"`, `"log_sum"` or `"unit_norm"`; see `LookaheadGuidance`. A guidance of your own is used as
            it is. With `"log_sum"` losses must be positive. Default `"sum"`.
        policy_interval: the number of updates from one step of the policy to the next; the first update has one. A step
            with guidance takes one more forward and backward pass, so that with 10 a run is almost as fast as without
            guidance. Default 1, as in the paper.
        guidance_weight: weight of the guidance term. Default 1.
        magnitude_weight: weight of the magnitude term. Default 0.1.
        progress_weight: weight of the progress term. With 0, and without `"log_sum"`, losses may have any sign.
            Default 0.1.
        scale: see `Balancer`.

    Diagnostics: `weight` (T,), the coefficients beta; `alignment` (T,), the cosine of each g_j with h at the last
    guided step of the policy, and 0 before the first; `tau`, `intervention` (w) and `cosine`, each (T, T), where row i
    belongs to the task whose gradient is changed; and the terms `magnitude` and `progress`, without their weights. With
    gates also `gate` (T,), the share 1 - w_ii of each gradient that passes, and `gate_tau` (T,), the diagonal of `tau`;
    without them the diagonals of `tau` and of w are 0.

    Raises:
        ValueError: an argument is out of range, or `gate` is asked for with `tau="scalar"`.
    """

    looks_at = "gramian"
    task_state = ("tau", "exp_avg", "exp_avg_sq", "alignment")
    tau: Tensor  # (T, T), or () with one threshold for all pairs; Adam's two moments have the same shape
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
        gate: bool = False,
        k: float = 10.0,
        lr: float = 1e-3,
        guidance: Guidance = "lookahead",
        guidance_loss: GuidanceLoss = "sum",
        policy_interval: int = 1,
        guidance_weight: float = 1.0,
        magnitude_weight: float = 0.1,
        progress_weight: float = 0.1,
        scale: Scale = "sum",
    ) -> None:
        super().__init__(num_tasks, scale=scale)
        check_choice("tau", tau, get_args(Thresholds))
        check_choice("guidance", guidance, get_args(Guidance))
        check_choice("guidance_loss", guidance_loss, get_args(GuidanceLoss))
        if gate and tau == "scalar":
            raise ValueError("gate is True, which needs tau='matrix': its diagonal holds the thresholds of the gates")
        self.gate = bool(gate)
        self.k: float = check_number("k", k, above=0)
        self.lr: float = check_number("lr", lr, above=0)
        self.guidance: Guidance = guidance
        self.wants_guidance = guidance == "lookahead"
        self.guidance_loss: GuidanceLoss = guidance_loss
        self.policy_interval: int = check_number("policy_interval", policy_interval, least=1, whole=True)
        self.guidance_weight: float = check_number("guidance_weight", guidance_weight, least=0)
        self.magnitude_weight: float = check_number("magnitude_weight", magnitude_weight, least=0)
        self.progress_weight: float = check_number("progress_weight", progress_weight, least=0)
        takes_logarithms = self.wants_guidance and guidance_loss == "log_sum"
        self.needs_positive_losses = progress_weight > 0 or takes_logarithms
        self.for_any_losses = "progress_weight=0" + " and guidance_loss='unit_norm'" * takes_logarithms
        self._guide: _Guide | None = None
        shape = () if tau == "scalar" else (num_tasks, num_tasks)
        for name in ("tau", "exp_avg", "exp_avg_sq"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device="cpu"))
        self.register_buffer("alignment", torch.zeros(num_tasks, dtype=torch.float64, device="cpu"))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.register_buffer("policy_steps", torch.zeros((), dtype=torch.int64, device="cpu"))
        self.reset()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `to`, `cuda` and `half` come here: the state stays in float64 on the CPU, where it is computed.
        return self

    def reset(self) -> None:
        """Return to thresholds of 0, gates of 0.5 and a policy without history. The guidance stays set."""
        for buffer in self.buffers():
            buffer.zero_()
        if self.gate:
            self.tau.fill_diagonal_(OPEN)

    def check_state(self, size: int) -> None:
        """See `Balancer.check_state`."""
        super().check_state(size)
        for name in ("exp_avg_sq", "updates", "policy_steps"):
            check_form(f"AIM's {name}", getattr(self, name), Like(getattr(self, name), least=0))

    def set_guidance(self, gradient: Callable[[Tensor], Tensor] | None, eta: float = 1.0) -> None:
        """See `Balancer.set_guidance`.

        Raises:
            ValueError: the balancer was made without guidance, or `eta` is out of range.
        """
        if gradient is not None and not self.wants_guidance:
            raise ValueError("this balancer was made with guidance='none'")
        check_number("eta", eta, above=0)
        self._guide = None if gradient is None else _Guide(gradient, float(eta))

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Answer with the coefficients beta for the present thresholds, and then let the policy take a step."""
        tau, alignment, updates = self.tau.numpy(), self.alignment.numpy(), self.updates.numpy()
        gramian = gradients.gramian
        # With m_i = n_i / N and b_j = n_j beta_j / N, no number below depends on the scale of the gradients.
        G = gramian.numpy(force=True)
        n = np.sqrt(G.diagonal())
        N = float(n.sum())
        inverse = np.array([1 / norm if norm > 0 else 0.0 for norm in n.tolist()])  # a zero row has no direction
        C = clip(G * inverse[:, None] * inverse)
        m = n / N if N > 0 else n
        w = 0.5 + 0.5 * np.tanh(0.5 * self.k * (tau - C))  # the sigmoid, without its overflow
        if not self.gate:
            w.flat[:: len(n) + 1] = 0.0  # the diagonal
        removed = w * C * m[:, None]  # (T, T): the part along u_j that is removed from g_i, divided by N
        b = m - removed.sum(0)
        beta = torch.from_numpy(np.where(n > 0, b * (N * inverse), 1.0))

        along = C @ b  # u_i.g / N
        norm = math.sqrt(max(float(b @ along), 0.0))
        alpha = self._shares(losses)
        used = tau.copy()
        if int(updates) % self.policy_interval == 0:
            # As |u_i.g| <= |g|, clipping changes only what is rounding error, when g is very near 0.
            unit = clip(along / norm) if norm > 0 else np.zeros_like(along)
            by_b = 2.0 * self.magnitude_weight * (norm - 1.0) * unit - self.progress_weight * (C @ (alpha * m))
            if self._guide is not None:
                alignment[:] = self._align(self._guide, gradients, beta) * inverse
                by_b -= self.guidance_weight * alignment
            self._step(-self.k * (1.0 - w) * removed * by_b)
        updates += 1
        aligned = alignment.copy()
        gates = {"gate": 1.0 - w.diagonal(), "gate_tau": used.diagonal()} if self.gate else {}
        diagnostics = Deferred(
            lambda: {
                "weight": beta,
                "tau": torch.from_numpy(used),
                "intervention": torch.from_numpy(w),
                "cosine": torch.from_numpy(C),
                "magnitude": torch.tensor((norm - 1.0) ** 2 if N > 0 else 0.0, dtype=torch.float64, device="cpu"),
                "progress": torch.tensor(alpha @ (m * along), dtype=torch.float64, device="cpu"),
                "alignment": torch.from_numpy(aligned),
                **{name: torch.from_numpy(values.copy()) for name, values in gates.items()},
            }
        )
        return Balance(beta.to(gramian.device), diagnostics=diagnostics)

    def shared_parameters(self, parameters: Parameters | None) -> Parameters | None:
        """With guidance, the shared parameters are those of the guidance, in its order.

        Raises:
            ValueError: `parameters` are not those of the guidance; or they are left out, and the guidance is a function
                of the user's own, so that the order of its parameters is unknown.
        """
        guidance = None if self._guide is None else self._guide.gradient
        if isinstance(guidance, LookaheadGuidance):
            known = guidance.layout.parameters
            if parameters is not None:
                given = ParameterLayout(as_parameters(parameters)).parameters
                if [id(p) for p in given] != [id(p) for p in known]:
                    raise ValueError("`parameters` are not those of the guidance, in its order")
            return known
        if guidance is not None and parameters is None:
            raise ValueError("pass `parameters`, in the order of the guidance gradient")
        return parameters

    def _shares(self, losses: Tensor) -> Array:
        """The alpha (T,), each task's share of the loss: equal if all losses are 0, and 0 without a progress term."""
        if self.progress_weight == 0:
            return np.zeros(len(losses))
        values = np.array(losses.tolist())
        total = float(values.sum())
        shares: Array = values / total if total > 0 else np.full(len(values), 1 / len(values))
        return shares

    def _align(self, guide: _Guide, gradients: TaskGradients, beta: Tensor) -> Array:
        """The products g_j.h / |h| (T,) with h, the guidance gradient one step ahead; 0 if h is 0."""
        eta = guide.eta / gradients.num_tasks if self.scale == "mean" else guide.eta
        h = guide.gradient(eta * gradients.combine(beta)).detach()
        if h.shape != (gradients.size,):
            raise ValueError(
                f"the guidance gradient has shape {tuple(h.shape)}; it must be one number per shared parameter, "
                f"({gradients.size},)"
            )
        if gradients.ranks.count() > 1:  # every process has held-out data of its own
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
    """Bring cosines that rounding has carried beyond -1 or 1 back to these bounds."""
    clipped: Array = np.minimum(np.maximum(cosines, -1.0), 1.0)  # takes a third of the time of `np.clip`
    return clipped
