"""GradNorm: learned task weights that let all tasks train at similar rates."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, Scale
from mtrl.gradients import TaskGradients

Progress = Literal["loss", "return"]


def project_weights(weights: Tensor, floor: float, total: float | None = None) -> Tensor:
    """Scale positive `weights` (T,) to sum to `total`, by default T, with none below `floor`.

    What the floor adds, the others give.
    """
    total = len(weights) if total is None else total
    weights = weights * (total / weights.sum())
    low = weights < floor
    while low.any():
        free = total - floor * int(low.sum())  # an integer tensor times a float would be float32
        weights = torch.where(low, floor, weights * (free / weights[~low].sum()))
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
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha is {alpha}; it must be at least 0 and finite")
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

    def reset(self) -> None:
        """Equal weights, no memory of losses or returns."""
        self.weights.fill_(1.0)
        self.initial_losses.zero_()
        self.steps.zero_()
        self.returns.fill_(math.nan)

    def record_returns(self, returns: Tensor) -> None:
        """Note the tasks' recent mean returns (T,), which `progress="return"` measures by. NaN: none known yet."""
        self.returns.copy_(returns)

    def training_rates(self, losses: Tensor) -> Tensor:
        """Relative inverse training rates r (T,), float64, of mean 1: above 1 for tasks that lag behind."""
        if self.progress == "return":
            assert self.return_range is not None
            low, high = self.return_range
            # A task without a finished episode counts as having made no progress.
            left = ((high - self.returns.nan_to_num(low)) / (high - low)).clamp(0.01, 1.0)
        else:
            initial = self.initial_losses
            floor = self.initial_loss_floor * initial.mean()
            left = losses / initial.clamp(min=floor) if floor > 0 else torch.ones_like(initial)
        mean = left.mean()
        return left / mean if mean > 0 else torch.ones_like(left)

    def weight_gradient(self, norms: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of L_grad with respect to the weights, and the target norms; all (T,)."""
        weighted = self.weights * norms
        targets = weighted.mean() * rates**self.alpha
        return torch.sign(weighted - targets) * norms, targets

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """The weights as they are; then their own step."""
        weights = self.weights.clone()
        norms = gradients.layer_norms
        losses = losses.to(self.initial_losses)
        fewest = int(self.steps.min())
        if fewest < self.warmup_steps:
            change = (losses - self.initial_losses) / (self.steps + 1)  # of the running mean
            self.initial_losses += torch.where(self.steps < self.warmup_steps, change, 0.0)
        self.steps += 1
        rates = self.training_rates(losses)
        gradient, targets = self.weight_gradient(norms, rates)
        mean = (weights * norms).mean()
        if mean > 0 and (fewest >= self.warmup_steps or self.warmup_steps == 1):
            log_gradient = weights * gradient / mean  # d/d log w = w * d/dw
            total = None if len(weights) == self.num_tasks else float(weights.sum())
            moved = weights * torch.exp(-self.lr * log_gradient)
            self.weights.copy_(project_weights(moved, self.weight_floor, total))
        active = (weights <= self.weight_floor * (1 + 1e-9)).double()
        diagnostics = {"weight": weights, "norm": norms, "target": targets, "rate": rates, "floor_active": active}
        return Balance(weights, diagnostics=diagnostics)
