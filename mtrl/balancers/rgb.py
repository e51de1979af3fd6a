"""RGB: each task's gradient turns towards a consensus, by the angle that lowers conflict most at least change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, Deferred, Scale
from mtrl.gradients import TaskGradients

Array = NDArray[np.float64]
Numbers = list[float]  # one per task
Magnitude = Literal["unit", "mean_norm", "sum_norm"]
LARGEST_ANGLE = math.pi / 2 - 1e-6
FEW = 8  # tasks, up to which plain numbers are faster than arrays


def plane_products(C: Array, c: Array, inverse_s: Array) -> Array:
    """Inner products (2T, 2T) of u_1 .. u_T, w_1 .. w_T, which span the planes that the tasks turn in; see `RGB`.

    Args:
        C: inner products of the unit gradients, (T, T).
        c: their inner products with d, (T,).
        inverse_s: 1/s (T,), or 0 where there is no direction to turn in: w is then 0.
    """
    num_tasks = len(c)
    column, cC = c[:, None], c * C
    products = np.empty((2 * num_tasks, 2 * num_tasks))
    uw = (column - cC) * inverse_s
    products[:num_tasks, :num_tasks] = C
    products[:num_tasks, num_tasks:] = uw
    products[num_tasks:, :num_tasks] = uw.T
    products[num_tasks:, num_tasks:] = (1.0 - c * c - column * (column - cC)) * inverse_s * inverse_s[:, None]
    return products


def angle_gradient(angles: Array, products: Array, lambd: float, num_tasks: int) -> Array:
    """`dF/da` (T,), for T = `num_tasks` of the rows: those whose u is not zero; see `RGB`.

    Args:
        angles: a (T,).
        products: `plane_products`.
        lambd: weight of the proximity term.
        num_tasks: T in the formulas, at least 2.
    """
    sin, cos = np.sin(angles), np.cos(angles)
    along = products @ np.concatenate((cos, sin))  # S.u_i and S.w_i
    turning = cos * along[len(sin) :] - sin * along[: len(sin)]  # r_i' . S
    gradient: Array = sin * (lambd / (2 * num_tasks)) - turning * (1 / (num_tasks * (num_tasks - 1)))
    return gradient


def rotate_few(
    angles: Numbers,
    C: list[Numbers],
    c: Numbers,
    inverse_s: Numbers,
    lambd: float,
    num_tasks: int,
    rate: float,
    steps: int,
) -> Numbers:
    """The angles (T,) after `steps` steps along `angle_gradient`, in plain numbers: for few tasks faster than arrays.

    Args:
        angles: a (T,), before.
        C: see `plane_products`.
        c: likewise.
        inverse_s: likewise.
        lambd: see `angle_gradient`.
        num_tasks: likewise.
        rate: of the steps.
        steps: their number.
    """
    tasks = range(len(angles))
    uw = [[(c[i] - c[j] * C[i][j]) * inverse_s[j] for j in tasks] for i in tasks]  # u_i.w_j
    ww = [
        [(1 - c[j] ** 2 - c[i] * (c[i] - c[j] * C[i][j])) * inverse_s[i] * inverse_s[j] for j in tasks] for i in tasks
    ]
    proximity, agreement = lambd / (2 * num_tasks), 1 / (num_tasks * (num_tasks - 1))
    after = list(angles)
    for _ in range(steps):
        cos, sin = [math.cos(angle) for angle in after], [math.sin(angle) for angle in after]
        for i in tasks:
            s_u = sum(cos[j] * C[i][j] + sin[j] * uw[i][j] for j in tasks)  # S.u_i
            s_w = sum(cos[j] * uw[j][i] + sin[j] * ww[i][j] for j in tasks)  # S.w_i
            gradient = proximity * sin[i] - agreement * (cos[i] * s_w - sin[i] * s_u)
            after[i] = min(max(after[i] - rate * gradient, 0.0), LARGEST_ANGLE)
    return after


class RGB(Balancer):
    r"""Rotation-based gradient balancing ("Preserving Gradient Harmony", submitted to ICLR 2026).

    With unit gradients u_i = g_i/|g_i|, the consensus d follows their mean,

        y = normalise(mean_i u_i),   d <- normalise(mu d + (1 - mu) y),   d = y at first,

    and each task turns towards it in the plane of u_i and d:

        r_i(a) = cos(a_i) u_i + sin(a_i) w_i,   w_i = normalise(d - c_i u_i),   c_i = u_i.d.

    The angles take `alpha_steps` steps of gradient descent at rate `lr_inner`, from where the last call left them, in
    [0, pi/2), on

        F(a) = 1/(T(T-1)) sum_{i<j} (1 - r_i.r_j) + lambda/(4T) sum_i |r_i - u_i|^2,

    where |r_i - u_i|^2 = 2 - 2 cos(a_i), and the update is mean_i r_i times the magnitude. With C = (u_i.u_j) and
    s_i = |d - c_i u_i| = sqrt(1 - c_i^2) both sides are closed forms (S = sum_j r_j, and r_i' its derivative):

        dF/da_i = -(r_i'.S)/(T(T-1)) + lambda sin(a_i)/(2T),
        mean_i r_i = sum_i beta_i u_i + gamma d,
        beta_i = (cos a_i - sin(a_i) c_i/s_i)/T,   gamma = sum_i (sin(a_i)/s_i)/T,

    so that a call costs O(T^2) a step besides one product `J d` and two combinations of the rows. beta_i/|g_i| are the
    coefficients, gamma d is the direction.

    Where this adds to the paper, and why:

    * `magnitude`. The published update has norm at most 1, whatever the gradients: it never gets smaller as training
      converges, and a learning rate for another method does not fit. The default gives it the norm that the sum of
      the gradients would have if they agreed, so that one task keeps its gradient as it is and `scale` means what it
      means in every balancer. Adaptive optimizers see little of the difference.
    * `invariant_steps`. A gradient of F is of order 1/(T-1) per task, so that with the published rate the rotation
      vanishes as T grows. These steps are T - 1 times as long: the published ones at T = 2, and at any T the same for
      tasks that are as similar.
    * Tasks with a zero gradient take no part: all is as if they were not there, and their angle waits for them. A
      lone task is not rotated. A task that lies along d, or exactly against it, has no plane to turn in and stays.
    * If the mean of the unit gradients is zero, as for two opposed tasks, there is no y and d stays as it is. Without
      a d, at the first call, nothing turns: the update is mean_i r_i = mean_i u_i, which is zero then. "Zero" and
      "along" are to within the rounding of the gradients' dtype.

    The consensus has a number per parameter, in their order: with `backward`, give `parameters` if the graph may differ
    from call to call, as otherwise their order is the graph's. Losses may have any sign.

    Args:
        num_tasks: T; may be left out, and is then that of the first call.
        mu: how much of the consensus stays at each call, in [0, 1). Default 0.9.
        lambd: weight of the proximity term: larger turns less. Default 1.0.
        alpha_steps: steps that the angles take at each rotation, at most 10,000. Default 3.
        lr_inner: rate of those steps. Default 0.2.
        update_interval: rotate at every so many calls; in between the update is mean_i u_i, times the magnitude. The
            consensus follows at every call. Default 1.
        magnitude: norm of the update if the r_i agreed: `"unit"` 1, as published (with `scale="sum"`), `"mean_norm"`
            the mean and `"sum_norm"` the sum of |g_i|. Default `"sum_norm"`.
        invariant_steps: take steps that do not depend on T. Default None: for more than 3 tasks.
        scale: see `Balancer`.

    Attributes:
        consensus: d (D,), in the gradients' dtype; None before the first.
        angles: a (T,), a NumPy array; None before the first call.
        steps: number of calls.

    Diagnostics: `weight` (T,), the coefficients; `angle` (T,), by which each task was turned; `cosine` (T, T), of the
    raw gradients; `consensus_cosine` (T,), the c_i, once there is a consensus.

    Raises:
        ValueError: an argument is out of range.
    """

    needs_gramian = True
    task_state = ("angles",)
    consensus: Tensor | None

    def __init__(
        self,
        num_tasks: int | None = None,
        *,
        mu: float = 0.9,
        lambd: float = 1.0,
        alpha_steps: int = 3,
        lr_inner: float = 0.2,
        update_interval: int = 1,
        magnitude: Magnitude = "sum_norm",
        invariant_steps: bool | None = None,
        scale: Scale = "sum",
    ) -> None:
        super().__init__(num_tasks, scale=scale)
        if not 0 <= mu < 1:
            raise ValueError(f"mu is {mu}; it must be in [0, 1)")
        if not 0 <= lambd < math.inf:
            raise ValueError(f"lambd is {lambd}; it must be at least 0 and finite")
        if not 1 <= alpha_steps <= 10**4:
            raise ValueError(f"alpha_steps is {alpha_steps}; it must be between 1 and 10000")
        if not 0 < lr_inner < math.inf:
            raise ValueError(f"lr_inner is {lr_inner}; it must be above 0 and finite")
        if update_interval < 1:
            raise ValueError(f"update_interval is {update_interval}; it must be at least 1")
        if magnitude not in get_args(Magnitude):
            raise ValueError(f"unknown magnitude {magnitude!r}; choose from {', '.join(get_args(Magnitude))}")
        self.mu = mu
        self.lambd = lambd
        self.alpha_steps = alpha_steps
        self.lr_inner = lr_inner
        self.update_interval = update_interval
        self.magnitude: Magnitude = magnitude
        self.invariant_steps = invariant_steps
        self.register_buffer("consensus", None)
        self.angles: Array | None = None
        self.steps = 0

    def reset(self) -> None:
        """No consensus and no angles."""
        self.consensus = None
        self.angles = None
        self.steps = 0

    def get_extra_state(self) -> dict[str, Any]:
        """What is not a buffer: the angles and the number of calls."""
        return {"angles": None if self.angles is None else self.angles.tolist(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_extra_state` gave."""
        self.angles = None if state["angles"] is None else np.array(state["angles"], dtype=np.float64)
        self.steps = state["steps"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Make room for the buffer that the first call makes, or drop it if the state has none."""
        consensus = state_dict.get(prefix + "consensus")
        if consensus is None or self.consensus is None or self.consensus.shape != consensus.shape:
            self.consensus = None if consensus is None else torch.empty_like(consensus)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def follow(self, gradients: TaskGradients, inverse: Numbers, C: list[Numbers], count: int) -> Numbers | None:
        """Move the consensus, and give its inner products with the unit gradients, c (T,); None without a consensus.

        Args:
            gradients: the gradients.
            inverse: 1/|g_i| (T,), or 0.
            C: inner products of the unit gradients, (T, T).
            count: how many of the gradients are not zero.
        """
        c: Numbers | None = None
        d = self.consensus
        if d is not None:
            if d.numel() != gradients.size:
                sizes = f"{len(d)} numbers and the gradients have {gradients.size}"
                raise ValueError(f"RGB's consensus has {sizes}: call reset() for another model")
            if d.dtype != gradients.dtype:
                d = self.consensus = d.to(gradients.dtype)
            c = [product * own for product, own in zip(gradients.dot(d).tolist(), inverse, strict=True)]
        sums = [sum(row) for row in C]
        length = math.sqrt(max(sum(sums), 0)) / count  # of the mean of the unit gradients
        tolerance = rounding(gradients.dtype)
        if length <= tolerance:
            return c
        to_y = 1 / (count * length)  # times the sum of the unit gradients is y
        if d is None or c is None:
            self.consensus = gradients.combine(vector([own * to_y for own in inverse]))
            return [each * to_y for each in sums]
        mu = self.mu
        norm = math.sqrt(max(mu**2 + (1 - mu) ** 2 + 2 * mu * (1 - mu) * to_y * sum(c), 0))
        if norm <= tolerance:  # mu = 1/2 and y = -d
            return c
        old, new = mu / norm, (1 - mu) / norm * to_y
        d = self.consensus = gradients.combine(vector([own * new for own in inverse]), d, old)
        if old > 1:  # otherwise rounding errors in |d| = 1, each time multiplied by old^2, die out
            d.div_(torch.linalg.vector_norm(d))
        return [old * along + new * each for along, each in zip(c, sums, strict=True)]

    def rotate(self, angles: Numbers, C: list[Numbers], c: Numbers, inverse_s: Numbers, count: int) -> Numbers:
        """The angles (T,) after their steps."""
        invariant = len(C) > 3 if self.invariant_steps is None else self.invariant_steps
        rate = self.lr_inner * (count - 1 if invariant else 1)
        if len(C) <= FEW:
            return rotate_few(angles, C, c, inverse_s, self.lambd, count, rate, self.alpha_steps)
        products = plane_products(np.array(C), np.array(c), np.array(inverse_s))
        after = np.array(angles)
        for _ in range(self.alpha_steps):
            after = after - rate * angle_gradient(after, products, self.lambd, count)
            after = np.minimum(np.maximum(after, 0.0), LARGEST_ANGLE)
        turned: Numbers = after.tolist()
        return turned

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Move the consensus, turn the tasks towards it."""
        num_tasks, gramian = gradients.num_tasks, gradients.gramian
        if self.angles is None:
            self.angles = np.zeros(num_tasks)
        if len(self.angles) != num_tasks:
            raise ValueError(f"this balancer was made for {len(self.angles)} tasks and got {num_tasks}")
        # In plain numbers: there are T of them, and for few an array takes longer.
        n = [math.sqrt(square) for square in gradients.squares]
        inverse = [1 / norm if norm > 0 else 0.0 for norm in n]
        C = [
            [product * own * other for product, other in zip(row, inverse, strict=True)]
            for row, own in zip(gramian.tolist(), inverse, strict=True)
        ]
        count = max(sum(norm > 0 for norm in n), 1)
        c = self.follow(gradients, inverse, C, count)
        self.steps += 1

        total = sum(n)
        scale = {"unit": 1.0, "mean_norm": total / count, "sum_norm": total}[self.magnitude] / count
        angles, coefficients, direction, factor = [0.0] * num_tasks, [scale * own for own in inverse], None, 0.0
        if c is not None and count > 1 and self.steps % self.update_interval == 0:
            tolerance, s = rounding(gradients.dtype), [math.sqrt(max(1 - along**2, 0.0)) for along in c]
            turns = [s_i > tolerance and norm > 0 for s_i, norm in zip(s, n, strict=True)]
            inverse_s = [1 / s_i if turning else 0.0 for s_i, turning in zip(s, turns, strict=True)]
            before = self.angles.tolist()
            begin = [angle if turning else 0.0 for angle, turning in zip(before, turns, strict=True)]
            angles = self.rotate(begin, C, c, inverse_s, count)
            self.angles[turns] = np.array(angles)[turns]
            sin_over_s = [math.sin(angle) * each for angle, each in zip(angles, inverse_s, strict=True)]
            coefficients = [
                each * (math.cos(angle) - along * sine)
                for each, angle, along, sine in zip(coefficients, angles, c, sin_over_s, strict=True)
            ]
            direction, factor = self.consensus, scale * sum(sin_over_s)
        weight = vector(coefficients).to(gramian.device)
        told: dict[str, Any] = {"angle": angles, "cosine": C} | ({} if c is None else {"consensus_cosine": c})
        diagnostics = Deferred(lambda: {"weight": weight, **{name: vector(numbers) for name, numbers in told.items()}})
        return Balance(weight, direction, factor, diagnostics)


def vector(numbers: Sequence[Any]) -> Tensor:
    """Numbers, or rows of them, as a tensor in float64."""
    return torch.tensor(numbers, dtype=torch.float64)


def rounding(dtype: torch.dtype) -> float:
    """Below this a length that is a difference of unit vectors is noise, if they were computed in `dtype`."""
    return 10 * math.sqrt(torch.finfo(dtype).eps)
