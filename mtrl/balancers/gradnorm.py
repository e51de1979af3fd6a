"""GradNorm: learned task weights that let all tasks train at similar rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, Deferred, Scale
from mtrl.files import one_line
from mtrl.gradients import TaskGradients
from mtrl.limits import check_choice, check_number
from mtrl.states import Like, check_form

Array = NDArray[np.float64]
Progress = Literal["loss", "return"]
ReturnRange = tuple[float, float] | Sequence[tuple[float, float]]
WeightSteps = Literal["log", "plain"]

LARGEST_ALPHA = 100  # rates are at most T, and T ** 100 does not overflow in float64 for up to 1,000 tasks
LARGEST_STEP = 50.0  # the largest change of a log-weight at once: its exponential neither overflows nor vanishes
TINY = 1e-200  # far below any real loss


def project_weights(weights: Array, floor: float, total: float | None = None) -> Array:
    """Scale positive `weights` (T,) so that they sum to `total` and none is below `floor`.

    Weights below the floor are raised to it, and the other weights are scaled down to keep the sum.

    Args:
        weights: the weights.
        floor: the smallest weight allowed, below `total / T`.
        total: the sum. Default: T.
    """
    total = len(weights) if total is None else total
    there = float(weights.sum())
    if there == 0:  # without a floor, the weights of all tasks in a batch may have vanished
        return weights
    weights = weights * (total / there)
    low = weights < floor
    while low.any():
        if low.all():  # possible only by rounding, when all weights are at the floor
            return np.full(len(weights), total / len(weights))
        free = total - floor * np.count_nonzero(low)
        weights = np.where(low, floor, weights * (free / weights[~low].sum()))
        below = weights < floor
        if not below.any():
            break
        low |= below
    return weights


def _check_range(given: object, num_tasks: int) -> None:
    """Refuse what is neither one pair (low, high) nor one for each task.

    Raises:
        ValueError: it is not.
    """
    try:
        ends = np.array(given, np.float64)
    except (TypeError, ValueError):
        ends = np.zeros(0)
    if ends.shape not in ((2,), (num_tasks, 2)) or not (
        np.isfinite(ends).all() and (ends[..., 0] < ends[..., 1]).all()
    ):
        needs = f"(low, high) with low < high, or such a pair for each of {num_tasks} tasks"
        raise ValueError(f"return_range is {one_line(given, 100)}; progress='return' needs {needs}")


class GradNorm(Balancer):
    r"""GradNorm (Chen et al. 2018, https://arxiv.org/abs/1711.02257).

    With n_i the norm of the gradient of the *unweighted* loss i on the last shared layer, the weighted norms are
    G_i = w_i n_i. Task i should have the norm

        target_i = mean_j(G_j) * r_i^alpha,   r_i = Ltilde_i / mean_j(Ltilde_j),   Ltilde_i = L_i(t) / L_i(0),

    a constant, so that L_grad = sum_i |G_i - target_i| has the gradient dL_grad/dw_i = sign(G_i - target_i) n_i in
    closed form: no second backward pass. The weights take a step of gradient descent on log w, which keeps them
    positive, along the gradient of L_grad / mean_j(G_j), which does not depend on the scale of the gradients:

        log w_i  <-  log w_i - lr * sign(G_i - target_i) * G_i / mean_j(G_j),

    and are then scaled to sum to T. The network's update uses the weights from before that step. With
    `weight_steps="plain"` the step is the one that is often written down,

        w_i  <-  max(0, w_i - lr * sign(G_i - target_i) * n_i),

    whose length grows with the gradients: where n_i is above 1 / lr, one step takes a weight from 1 to 0.

    Where this departs from the paper, and why:

    * L(0) is the mean over the first `warmup_steps` losses, and the weights stay 1 until then, because the loss of one
      bootstrapped temporal-difference batch says nothing. `warmup_steps=1` is the paper's rule.
    * A floor under L(0) and a floor under the weights make a collapse impossible. Without them, weights of 2.66, 0.009
      and 0.33 have been seen.
    * A task that is missing from a batch keeps its weight, and the weights of the other tasks keep their sum. Each task
      has its own warm-up; weights change once all tasks of the batch have finished it.
    * `progress="return"` is an extension of this project. The training rate is then measured by how much of the way to
      the highest return is left, Ltilde_i = (high - R_i) / (high - low), with R_i from `record_returns`.

    The state is a few buffers of T numbers. It is computed on the CPU in float64 and stays there: `to` does not move
    it.

    Args:
        num_tasks: T.
        alpha: how strongly tasks that lag behind are favoured, from 0 to 100. 0 equalises all norms; it does not switch
            the balancing off. Default 1.5.
        lr: learning rate of the weights, about the largest relative change in one step. Default 0.01.
        warmup_steps: the number of losses that are averaged into L(0). Default 100.
        weight_floor: smallest weight, on the scale where the mean weight is 1; in [0, 1). Default 0.1.
        initial_loss_floor: smallest L_i(0), as a share of the mean L(0). Default 0.01.
        weight_steps: `"log"` for steps on the logarithms of the weights, `"plain"` for steps on the weights. Default
            `"log"`.
        progress: the measure of the training rate, `"loss"` or `"return"`. Default `"loss"`.
        return_range: (low, high), the return that counts as no progress and the return that counts as solved: one pair
            for all tasks, or one pair for each task; needed for `progress="return"`.
        scale: see `Balancer`.

    Diagnostics, per task: `weight`, `norm` (n_i), `target`, `rate` (r_i), `floor_active` (0 or 1).

    Raises:
        ValueError: an argument is out of range.
    """

    needs_positive_losses = True
    for_any_losses = "progress='return'"
    task_state = ("weights", "initial_losses", "steps", "returns")
    weights: Tensor  # (T,), sum to T
    initial_losses: Tensor
    steps: Tensor  # (T,), the number of batches that held each task
    returns: Tensor

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
        scale: Scale = "sum",
    ) -> None:
        super().__init__(num_tasks, scale=scale)
        check_number("alpha", alpha, least=0, most=LARGEST_ALPHA)
        check_number("lr", lr, above=0)
        check_number("warmup_steps", warmup_steps, least=1, whole=True)
        check_number("weight_floor", weight_floor, least=0, below=1)
        check_number("initial_loss_floor", initial_loss_floor, above=0, most=1)
        check_choice("weight_steps", weight_steps, get_args(WeightSteps))
        check_choice("progress", progress, get_args(Progress))
        if progress == "return" or return_range is not None:
            _check_range(return_range, num_tasks)
        self.alpha = alpha
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.weight_floor = weight_floor
        self.initial_loss_floor = initial_loss_floor
        self.weight_steps: WeightSteps = weight_steps
        self.progress: Progress = progress
        self.needs_positive_losses = progress == "loss"
        self.return_range = return_range
        self.register_buffer("weights", torch.ones(num_tasks, dtype=torch.float64, device="cpu"))
        self.register_buffer("initial_losses", torch.zeros(num_tasks, dtype=torch.float64, device="cpu"))
        self.register_buffer("steps", torch.zeros(num_tasks, dtype=torch.int64, device="cpu"))
        self.register_buffer("returns", torch.full((num_tasks,), math.nan, dtype=torch.float64, device="cpu"))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `to`, `cuda` and `half` come here: the state stays in float64 on the CPU, where it is computed.
        return self

    def reset(self) -> None:
        """Return to equal weights, and forget all losses and returns."""
        self.weights.fill_(1.0)
        self.initial_losses.zero_()
        self.steps.zero_()
        self.returns.fill_(math.nan)

    def check_state(self, size: int) -> None:
        """See `Balancer.check_state`. A return is NaN as long as it is unknown."""
        check_form("GradNorm's weights", self.weights, Like(self.weights, least=0))
        check_form("GradNorm's initial_losses", self.initial_losses, Like(self.initial_losses, least=0))
        check_form("GradNorm's steps", self.steps, Like(self.steps, least=0))
        if abs(float(self.weights.sum()) - len(self.weights)) > 1e-6:
            raise ValueError(f"GradNorm's weights are {self.weights.tolist()}; they must have a mean of 1")

    def record_returns(self, returns: Tensor) -> None:
        """Note each task's recent mean return (T,), for `progress="return"`. NaN stands for an unknown return."""
        self.returns.copy_(returns)

    def training_rates(self, losses: Array) -> Array:
        """Relative inverse training rates r (T,), with a mean of 1; a task that lags behind is above 1."""
        if self.progress == "return":
            assert self.return_range is not None
            low, high = np.broadcast_to(np.array(self.return_range, np.float64), (len(self.returns), 2)).T
            # A task without a finished episode counts as one that has made no progress.
            returns = self.returns.numpy()
            left = ((high - np.where(np.isnan(returns), low, returns)) / (high - low)).clip(0.01, 1.0)
        else:
            initial = self.initial_losses.numpy()
            floor = self.initial_loss_floor * float(initial.sum()) / len(initial)
            if 0 < floor < TINY:  # nearly all losses so far were 0, and the quotients would overflow
                floor = max(floor, TINY * float(losses.max()))
            left = losses / np.maximum(initial, floor) if floor > 0 else np.ones_like(initial)
        mean = float(left.sum()) / len(left)
        return left / mean if mean > 0 else np.ones_like(left)

    def weight_gradient(self, weights: Array, norms: Array, rates: Array) -> tuple[Array, Array, float]:
        """Gradient of L_grad with respect to the weights, (T,), the target norms (T,), and the mean weighted norm."""
        weighted = weights * norms
        mean = float(weighted.sum()) / len(weighted)
        targets = mean * rates**self.alpha
        return np.sign(weighted - targets) * norms, targets, mean

    def step(self, weights: Array, gradient: Array, mean: float) -> Array:
        """The weights (T,) after a step of gradient descent, before they are scaled.

        Args:
            weights: the weights.
            gradient: the gradient of L_grad.
            mean: the mean weighted norm.
        """
        if self.weight_steps == "plain":
            after = np.maximum(weights - self.lr * gradient, 0.0)
            return after if after.any() else weights
        step = -self.lr * (weights * gradient / mean)  # d/d log w = w * d/dw, between -T and T
        if self.lr * len(step) > LARGEST_STEP:
            step = step.clip(-LARGEST_STEP, LARGEST_STEP)
        return weights * np.exp(step)

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Answer with the present weights, and then let the weights take a step."""
        # On T numbers NumPy is several times as fast as torch. These arrays share the memory of the buffers.
        own, initial, steps = self.weights.numpy(), self.initial_losses.numpy(), self.steps.numpy()
        weights, current = own.copy(), np.array(losses.tolist(), dtype=np.float64)
        fewest = min(steps.tolist())
        if fewest < self.warmup_steps:
            change = (current - initial) / (steps + 1)  # the change of the running mean
            initial += np.where(steps < self.warmup_steps, change, 0.0)
        steps += 1
        rates = self.training_rates(current)
        gradient, targets, mean = self.weight_gradient(weights, gradients.layer_norms.numpy(force=True), rates)
        if mean > 0 and (fewest >= self.warmup_steps or self.warmup_steps == 1):
            total = None if len(weights) == self.num_tasks else float(weights.sum())
            own[:] = project_weights(self.step(weights, gradient, mean), self.weight_floor, total)
        coefficients = torch.from_numpy(weights).to(gradients.device)
        norms = gradients.layer_norms
        diagnostics = Deferred(
            lambda: {
                "weight": coefficients,
                "norm": norms,
                "target": torch.from_numpy(targets),
                "rate": torch.from_numpy(rates),
                "floor_active": torch.from_numpy((weights <= self.weight_floor * (1 + 1e-9)).astype(np.float64)),
            }
        )
        return Balance(coefficients, diagnostics=diagnostics)
