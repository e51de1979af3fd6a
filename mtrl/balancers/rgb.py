"""RGB: each task's gradient turns towards a consensus, by an angle that weighs less conflict against less change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.balancers import _few_tasks
from mtrl.balancers.base import Balance, Balancer, Deferred, Scale, vector
from mtrl.gradients import TaskGradients
from mtrl.limits import check_choice, check_number
from mtrl.memory import rounding
from mtrl.states import Number, Whole, check_form

Array = NDArray[np.float64]
Numbers = list[float]  # one per task
Magnitude = Literal["unit", "mean_norm", "sum_norm"]
LARGEST_ANGLE = math.pi / 2 - 1e-6


def plane_products(C: Array, c: Array, inverse_s: Array) -> Array:
    """Inner products (2T, 2T) of the vectors u_1 .. u_T, w_1 .. w_T, where task i turns in the plane of u_i and w_i.

    Args:
        C: inner products u_i.u_j of the unit gradients, (T, T).
        c: inner products u_i.d with the consensus, (T,).
        inverse_s: 1/s_i (T,), or 0 for a task without a plane to turn in; its w_i is then 0.
    """
    num_tasks = len(c)
    c_i, cC = c[:, None], c * C
    products = np.empty((2 * num_tasks, 2 * num_tasks))
    uw = (c_i - cC) * inverse_s
    products[:num_tasks, :num_tasks] = C
    products[:num_tasks, num_tasks:] = uw
    products[num_tasks:, :num_tasks] = uw.T
    products[num_tasks:, num_tasks:] = (1.0 - c * c - c_i * (c_i - cC)) * inverse_s * inverse_s[:, None]
    return products


def angle_gradient(angles: Array, products: Array, lambd: float, num_tasks: int) -> Array:
    """The gradient dF/da; see `RGB`.

    Args:
        angles: a, one number per row.
        products: the inner products that `plane_products` gives.
        lambd: lambda, the weight of the proximity term.
        num_tasks: T in the formulas, the number of rows that are not zero; at least 2.
    """
    sin, cos = np.sin(angles), np.cos(angles)
    along = products @ np.concatenate((cos, sin))  # S.u_i and S.w_i
    turning = cos * along[len(sin) :] - sin * along[: len(sin)]  # r_i' . S
    gradient: Array = sin * (lambd / (2 * num_tasks)) - turning * (1 / (num_tasks * (num_tasks - 1)))
    return gradient


def rotate(
    angles: Numbers,
    C: list[Numbers],
    c: Numbers,
    inverse_s: Numbers,
    *,
    lambd: float,
    num_tasks: int,
    rate: float,
    steps: int,
    largest: float,
) -> Numbers:
    """Take `steps` steps of gradient descent on F, and return the angles (T,); see `RGB`.

    Args:
        angles: a (T,), before the steps.
        C: see `plane_products`.
        c: see `plane_products`.
        inverse_s: see `plane_products`.
        lambd: see `angle_gradient`.
        num_tasks: see `angle_gradient`.
        rate: the learning rate of the steps.
        steps: the number of steps.
        largest: the angles stay between 0 and this.
    """
    products = plane_products(np.array(C), np.array(c), np.array(inverse_s))
    after = np.array(angles)
    for _ in range(steps):
        after = after - rate * angle_gradient(after, products, lambd, num_tasks)
        after = np.minimum(np.maximum(after, 0.0), largest)
    turned: Numbers = after.tolist()
    return turned


class RGB(Balancer):
    r"""Rotation-based gradient balancing ("Preserving Gradient Harmony", submitted to ICLR 2026).

    With unit gradients u_i = g_i/|g_i|, the consensus d follows their mean,

        y = normalise(mean_i u_i),   d <- normalise(mu d + (1 - mu) y),   d = y at first,

    and each task turns towards it in the plane of u_i and d:

        r_i(a) = cos(a_i) u_i + sin(a_i) w_i,   w_i = normalise(d - c_i u_i),   c_i = u_i.d.

    From the values that they had after the last call, the angles take `alpha_steps` steps of gradient descent at rate
    `lr_inner`, within [0, pi/2), on

        F(a) = 1/(T(T-1)) sum_{i<j} (1 - r_i.r_j) + lambda/(4T) sum_i |r_i - u_i|^2,

    where |r_i - u_i|^2 = 2 - 2 cos(a_i), and the update is mean_i r_i times the magnitude. With C = (u_i.u_j) and
    s_i = |d - c_i u_i| = sqrt(1 - c_i^2), the gradient and the update are closed forms (S = sum_j r_j,
    r_i' = dr_i/da_i):

        dF/da_i = -(r_i'.S)/(T(T-1)) + lambda sin(a_i)/(2T),
        mean_i r_i = sum_i beta_i u_i + gamma d,
        beta_i = (cos a_i - sin(a_i) c_i/s_i)/T,   gamma = sum_i (sin(a_i)/s_i)/T,

    so that a step costs O(T^2), and a call one product `J d` and two combinations of the rows besides. The coefficients
    are beta_i/|g_i|, and the direction is gamma d, times the magnitude.

    The defaults are not those of the public original (`VRNN/RGB.py` of https://github.com/neuronphysics/AIME, the `RGB`
    of its `multi_task_learning`). `RGB.published()` has the original's: over 60 steps of 2 to 6 tasks the updates of
    the two differ by less than 1e-6 of their length, the rounding of the original's float32. The defaults depart from
    it in three arguments:

    * `magnitude`. The published update has a norm of at most 1 for any gradients: it does not get smaller as training
      converges, and a learning rate that was chosen for another method does not fit. By default the update has the norm
      that the sum of the gradients would have if all had the same direction. The gradient of a single task then stays
      as it is, and `scale` means the same as in every balancer. With an adaptive optimizer the difference is small.
    * `invariant_steps`. The gradient of F is of order 1/(T-1) for each task, so that with the published rate the
      rotation vanishes as T grows. Invariant steps are T - 1 times as long. At T = 2 they are the published ones, and
      for equally similar tasks they are the same at any T.
    * `align_threshold`. The original does not turn a task whose cosine with the consensus is beyond 0.999, and forgets
      its angle. Here only a task that points along the consensus is not turned, and it keeps its angle.

    What happens where the formulas have no answer:

    * A task with a zero gradient is treated as missing, and its angle stays unchanged. If there is only one task, it is
      not rotated. A task that points along d or exactly against it has no plane to turn in and is not rotated either.
    * If the mean of the unit gradients is zero, as for two opposed tasks, there is no y, and d stays as it is. If that
      happens at the first call, there is no d, and no task turns. "Zero" and "along" mean up to the rounding of the
      gradients' dtype.

    The consensus holds a number per parameter, in the order of the parameters. With `backward`, give `parameters` if
    the graph may differ from call to call, because otherwise the graph decides their order. Losses may have any sign.

    Args:
        num_tasks: T; if left out, it is the number of tasks at the first call.
        mu: the share of the old consensus that is kept at each call, in [0, 1). Default 0.9.
        lambd: lambda, the weight of the proximity term; a larger weight turns the gradients less. Default 1.0.
        alpha_steps: the number of steps that the angles take at each rotation, at most 10,000. Default 3.
        lr_inner: the rate of those steps. Default 0.2.
        update_interval: the number of calls from one rotation to the next. At the other calls the update is mean_i u_i,
            times the magnitude, and the consensus still follows. Default 1.
        magnitude: the norm that the update would have if all r_i were equal: `"unit"` for 1, as published (with
            `scale="sum"`), `"mean_norm"` for the mean of the |g_i|, and `"sum_norm"` for their sum. Default
            `"sum_norm"`.
        invariant_steps: whether to take steps that do not depend on T. Default None: for more than 3 tasks.
        align_threshold: the |c_i|, in (0, 1], beyond which a task is not turned and its angle becomes 0. Default 1.0:
            all tasks turn, except those that have no plane to turn in.
        scale: see `Balancer`.

    Attributes:
        PUBLISHED: the arguments of the public original, for all that takes a balancer's arguments:
            `make_balancer("rgb", 3, **RGB.PUBLISHED)`, `balancer_kwargs=RGB.PUBLISHED`.
        consensus: d (D,), in the dtype of the gradients; None as long as there is no consensus.
        angles: a (T,), a NumPy array; None before the first call.
        steps: the number of calls.

    Diagnostics: `weight` (T,), the coefficients; `angle` (T,), the angle by which each task was turned; `cosine` (T, T)
    of the raw gradients; `consensus_cosine` (T,), the c_i, once there is a consensus.

    Raises:
        ValueError: an argument is out of range.
    """

    PUBLISHED: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"magnitude": "unit", "invariant_steps": False, "align_threshold": 0.999}
    )

    looks_at = "gramian"
    has_memory = True
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
        align_threshold: float = 1.0,
        scale: Scale = "sum",
    ) -> None:
        super().__init__(num_tasks, scale=scale)
        check_number("mu", mu, least=0, below=1)
        check_number("lambd", lambd, least=0)
        check_number("lr_inner", lr_inner, above=0)
        check_choice("magnitude", magnitude, get_args(Magnitude))
        self.mu = mu
        self.lambd = lambd
        self.alpha_steps: int = check_number("alpha_steps", alpha_steps, least=1, most=10**4, whole=True)
        self.lr_inner = lr_inner
        self.update_interval: int = check_number("update_interval", update_interval, least=1, whole=True)
        self.magnitude: Magnitude = magnitude
        self.invariant_steps = invariant_steps
        self.align_threshold: float = check_number("align_threshold", align_threshold, above=0, most=1)
        self.register_buffer("consensus", None)
        self.angles: Array | None = None
        self.steps = 0

    @classmethod
    def published(cls, num_tasks: int | None = None, **kwargs: Any) -> Self:
        """The public original: its magnitude, its steps, and its threshold of alignment.

        Args:
            num_tasks: T; if left out, it is the number of tasks at the first call.
            kwargs: other arguments of the class, whose defaults are the original's, or other values for these three.
        """
        return cls(num_tasks, **{**cls.PUBLISHED, **kwargs})

    def reset(self) -> None:
        """Forget the consensus and the angles."""
        self.consensus = None
        self.angles = None
        self.steps = 0

    def get_extra_state(self) -> dict[str, Any]:
        """The state that is not in buffers: the angles and the number of calls."""
        return {"angles": None if self.angles is None else self.angles.tolist(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_extra_state` returned."""
        self.angles = None if state["angles"] is None else np.array(state["angles"], dtype=np.float64)
        self.steps = state["steps"]

    def check_state(self, size: int) -> None:
        """See `Balancer.check_state`."""
        super().check_state(size)
        check_form("RGB's steps", self.steps, Whole())
        if self.consensus is not None and self.consensus.shape != (size,):
            raise ValueError(f"RGB's consensus has the shape {tuple(self.consensus.shape)}; it must be ({size},)")
        if self.angles is not None:
            angles = self.angles.tolist()
            check_form("RGB's angles", angles, [Number(0, LARGEST_ANGLE)] * (self.num_tasks or len(angles)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Give the consensus the shape that it has in the state, or drop it if the state has none."""
        consensus = state_dict.get(prefix + "consensus")
        if consensus is None or self.consensus is None or self.consensus.shape != consensus.shape:
            self.consensus = None if consensus is None else torch.empty_like(consensus)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def follow(self, gradients: TaskGradients, inverse: Numbers, C: list[Numbers], count: int) -> Numbers | None:
        """Move the consensus, and return its inner products with the unit gradients, c (T,).

        Args:
            gradients: the gradients.
            inverse: 1/|g_i| (T,), or 0 for a zero gradient.
            C: inner products of the unit gradients, (T, T).
            count: the number of gradients that are not zero.

        Returns:
            c, or None if there is no consensus yet.
        """
        c: Numbers | None = None
        d = self.consensus
        if d is not None:
            if d.numel() != gradients.size:
                sizes = f"{len(d)} numbers and the gradients have {gradients.size}"
                raise ValueError(
                    f"RGB's consensus has {sizes}: give the same `parameters` at every call, or call reset() for "
                    "another model"
                )
            if d.dtype != gradients.dtype:
                d = self.consensus = d.to(gradients.dtype)
            c = [product * own for product, own in zip(gradients.dot(d).tolist(), inverse, strict=True)]
        sums = [sum(row) for row in C]
        length = math.sqrt(max(sum(sums), 0)) / count  # the norm of the mean of the unit gradients
        tolerance = rounding(gradients.dtype)
        if length <= tolerance:
            return c
        to_y = 1 / (count * length)  # y is this times the sum of the unit gradients
        if d is None or c is None:
            self.consensus = gradients.combine(vector([own * to_y for own in inverse]))
            return [each * to_y for each in sums]
        mu = self.mu
        norm = math.sqrt(max(mu**2 + (1 - mu) ** 2 + 2 * mu * (1 - mu) * to_y * sum(c), 0))
        if norm <= tolerance:  # this happens for mu = 1/2 and y = -d
            return c
        old, new = mu / norm, (1 - mu) / norm * to_y
        d = self.consensus = gradients.combine(vector([own * new for own in inverse]), d, old)
        if old > 1:  # each call multiplies the rounding error of |d| = 1 by old^2, so that it would grow
            d.div_(torch.linalg.vector_norm(d))
        return [old * along + new * each for along, each in zip(c, sums, strict=True)]

    def rotate(self, angles: Numbers, C: list[Numbers], c: Numbers, inverse_s: Numbers, count: int) -> Numbers:
        """Take this balancer's steps from `angles` (T,); see the function `rotate`, where `num_tasks` is `count`."""
        invariant = len(C) > 3 if self.invariant_steps is None else self.invariant_steps
        rotation = rotate if len(C) > _few_tasks.FEW else _few_tasks.rotate
        return rotation(
            angles,
            C,
            c,
            inverse_s,
            lambd=self.lambd,
            num_tasks=count,
            rate=self.lr_inner * (count - 1 if invariant else 1),
            steps=self.alpha_steps,
            largest=LARGEST_ANGLE,
        )

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Move the consensus, and turn the tasks towards it."""
        num_tasks, gramian = gradients.num_tasks, gradients.gramian
        if self.angles is None:
            self.angles = np.zeros(num_tasks)
        if len(self.angles) != num_tasks:
            raise ValueError(f"this balancer was made for {len(self.angles)} tasks and got {num_tasks}")
        # These are plain numbers, because for few tasks arrays take longer.
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
            if self.align_threshold < 1:
                aligned = [abs(along) > self.align_threshold for along in c]
                self.angles[aligned] = 0.0
                turns = [turning and not there for turning, there in zip(turns, aligned, strict=True)]
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
