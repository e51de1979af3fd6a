"""GradNorm: learned task weights that let all tasks train at similar rates."""

from __future__ import annotations

import math
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, Deferred, Scale
from mtrl.gradients import TaskGradients

Array = NDArray[np.float64]
Progress = Literal["loss", "return"]

LARGEST_ALPHA = 100.0  # rates are at most T, and T ** 100 is in the range of float64
LARGEST_STEP = 50.0  # of a log-weight at once: exp of it neither overflows nor lets the largest weight fade
TINY = 1e-200  # losses are far above it


def project_weights(weights: Array, floor: float, total: float | None = None) -> Array:
    """Scale positive `weights` (T,) to sum to `total`, by default T, with none below `floor`.

    What the floor adds, the others give.
    """
    total = len(weights) if total is None else total
    there = float(weights.sum())
    if there == 0:  # without a floor, weights may have faded to 0: those of all the tasks in a batch, too
        return weights
    weights = weights * (total / there)
    low = weights < floor
    while low.any():
        if low.all():  # all at the floor, but for rounding
            return np.full(len(weights), total / len(weights))
        free = total - floor * np.count_nonzero(low)
        weights = np.where(low, floor, weights * (free / weights[~low].sum()))
        below = weights < floor
        if not below.any():
            break
        low |= below
    return weights


class GradNorm(Balancer):
    r"""GradNorm (Chen et al. 2018, https://arxiv.org/abs/1711.02257).

    With n_i the norm of the gradient of the *unweighted* loss i on the last shared layer, the weighted norms are
    G_i = w_i n_i. Task i should have the norm

        target_i = mean_j(G_j) * r_i^alpha,   r_i = Ltilde_i / mean_j(Ltilde_j),   Ltilde_i = L_i(t) / L_i(0),

    a constant, so that L_grad = sum_i |G_i - target_i| has the gradient dL_grad/dw_i = sign(G_i - target_i) n_i in
    closed form: no second backward pass. The weights take a step of gradient descent on log w, which keeps them
    positive, along the gradient of L_grad / mean_j(G_j), which does not depend on the gradients' scale:

        log w_i  <-  log w_i - lr * sign(G_i - target_i) * G_i / mean_j(G_j),

    and are then scaled to sum to T. The network's update uses the weights from before that step.

    Where this departs from the paper, and why:

    * L(0) is the mean over the first `warmup_steps` losses, during which the weights stay 1: one bootstrapped
      temporal-difference batch says nothing. `warmup_steps=1` is the paper's rule.
    * A floor under L(0) and one under the weights make a collapse impossible (2.66 / 0.009 / 0.33 is on record).
    * Tasks that are missing from a batch keep their weights, and the others theirs in sum. Each task has its own
      warm-up; weights move once all tasks of the batch are through it.
    * `progress="return"` is an extension of this project: the training rate is what is left of the way to the
      highest return, Ltilde_i = (high - R_i) / (high - low), with R_i from `record_returns`.

    The state, T numbers a buffer, is computed on the CPU in float64 and stays there: `to` does not move it.

    Args:
        num_tasks: T.
        alpha: strength of the pull towards tasks that lag behind. 0 equalises all norms; it does not switch the
            balancing off. Default 1.5.
        lr: learning rate of the weights: about the largest relative change in one step. Default 0.01.
        warmup_steps: losses that are averaged into L(0). Default 100.
        weight_floor: smallest weight, on the scale where the mean weight is 1; in [0, 1). Default 0.1.
        initial_loss_floor: smallest L_i(0), as a share of the mean L(0). Default 0.01.
        progress: what the training rate is measured by, `"loss"` or `"return"`. Default `"loss"`.
        return_range: (low, high) returns per task that count as no progress and as done; needed for
            `progress="return"`.
        scale: see `Balancer`.

    Diagnostics, per task: `weight`, `norm` (n_i), `target`, `rate` (r_i), `floor_active` (0 or 1).

    Raises:
        ValueError: an argument is out of range.
    """

    needs_positive_losses = True
    task_state = ("weights", "initial_losses", "steps", "returns")
    weights: Tensor  # (T,), sum to T
    initial_losses: Tensor
    steps: Tensor  # (T,), how many batches each task was in
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
        progress: Progress = "loss",
        return_range: tuple[float, float] | None = None,
        scale: Scale = "sum",
    ) -> None:
        super().__init__(num_tasks, scale=scale)
        if not 0 <= alpha <= LARGEST_ALPHA:
            raise ValueError(f"alpha is {alpha}; it must be at least 0 and at most {LARGEST_ALPHA}")
        if not 0 < lr < math.inf:
            raise ValueError(f"lr is {lr}; it must be above 0 and finite")
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps is {warmup_steps}; it must be at least 1")
        if not 0 <= weight_floor < 1:
            raise ValueError(f"weight_floor is {weight_floor}; it must be in [0, 1), where 1 is the mean weight")
        if not 0 < initial_loss_floor <= 1:
            raise ValueError(f"initial_loss_floor is {initial_loss_floor}; it must be in (0, 1]")
        if progress not in get_args(Progress):
            raise ValueError(f"unknown progress {progress!r}; choose from {', '.join(get_args(Progress))}")
        if progress == "return" and (
            return_range is None or not -math.inf < return_range[0] < return_range[1] < math.inf
        ):
            raise ValueError(f"return_range is {return_range}; progress='return' needs (low, high) with low < high")
        self.alpha = alpha
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.weight_floor = weight_floor
        self.initial_loss_floor = initial_loss_floor
        self.progress: Progress = progress
        self.needs_positive_losses = progress == "loss"
        self.return_range = return_range
        self.register_buffer("weights", torch.ones(num_tasks, dtype=torch.float64))
        self.register_buffer("initial_losses", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros(num_tasks, dtype=torch.int64))
        self.register_buffer("returns", torch.full((num_tasks,), math.nan, dtype=torch.float64))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `to`, `cuda`, `half`: the state is T numbers, stays in float64 and stays where it is computed, on the CPU.
        return self

    def reset(self) -> None:
        """Equal weights, no memory of losses or returns."""
        self.weights.fill_(1.0)
        self.initial_losses.zero_()
        self.steps.zero_()
        self.returns.fill_(math.nan)

    def record_returns(self, returns: Tensor) -> None:
        """Note the tasks' recent mean returns (T,), which `progress="return"` measures by. NaN: none known yet."""
        self.returns.copy_(returns)

    def training_rates(self, losses: Array) -> Array:
        """Relative inverse training rates r (T,) of mean 1: above 1 for tasks that lag behind."""
        if self.progress == "return":
            assert self.return_range is not None
            low, high = self.return_range
            # A task without a finished episode counts as having made no progress.
            left = ((high - np.nan_to_num(self.returns.numpy(), nan=low)) / (high - low)).clip(0.01, 1.0)
        else:
            initial = self.initial_losses.numpy()
            floor = self.initial_loss_floor * float(initial.sum()) / len(initial)
            if 0 < floor < TINY:  # hardly a loss has been seen yet: the quotients would overflow
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

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """The weights as they are; then their own step."""
        # On T numbers NumPy takes a fraction of torch's time; these arrays are the buffers' own memory.
        own, initial, steps = self.weights.numpy(), self.initial_losses.numpy(), self.steps.numpy()
        weights, current = own.copy(), np.array(losses.tolist(), dtype=np.float64)
        fewest = min(steps.tolist())
        if fewest < self.warmup_steps:
            change = (current - initial) / (steps + 1)  # of the running mean
            initial += np.where(steps < self.warmup_steps, change, 0.0)
        steps += 1
        rates = self.training_rates(current)
        gradient, targets, mean = self.weight_gradient(weights, gradients.layer_norms.numpy(force=True), rates)
        if mean > 0 and (fewest >= self.warmup_steps or self.warmup_steps == 1):
            step = -self.lr * (weights * gradient / mean)  # d/d log w = w * d/dw, between -T and T
            if self.lr * len(step) > LARGEST_STEP:
                step = step.clip(-LARGEST_STEP, LARGEST_STEP)
            total = None if len(weights) == self.num_tasks else float(weights.sum())
            own[:] = project_weights(weights * np.exp(step), self.weight_floor, total)
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
