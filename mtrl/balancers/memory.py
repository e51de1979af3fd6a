"""Normalised gradients with memory: RGB without its handling of conflict."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer, Scale, vector
from mtrl.balancers.normalised import equal_lengths
from mtrl.gradients import TaskGradients
from mtrl.limits import check_number
from mtrl.memory import rounding, turn


class MemoryBalancer(Balancer):
    """The sum of gradients of equal length, turned by a fixed angle towards what such sums had in common.

    The control for RGB: the consensus is remembered and mixed in as there, but no task is turned by itself, so that
    nothing depends on how the tasks conflict. It is `NormalisedGradients` followed by `DirectionMemory`, which has the
    formula, from inner products alone: a call costs one product `J d` and two combinations of the rows.

    The memory holds a number per parameter, in the order of the parameters; with `backward`, give `parameters` if the
    graph may differ from call to call. Losses may have any sign.

    Args:
        num_tasks: T; if left out, it is the number of losses.
        angle: the angle of the turn in radians, from 0 to pi/2; the turn stops at the memory. Default 0.8.
        decay: the share of the memory that is kept at each call, in [0, 1). Default 0.9.
        scale: see `Balancer`.

    Attributes:
        direction: the memory (D,), of length 1, in the dtype of the gradients; None before the first call.

    Diagnostics: `weight` (T,), the coefficients of the task gradients.

    Raises:
        ValueError: an argument is out of range.
    """

    looks_at = "gramian"
    has_memory = True
    direction: Tensor | None

    def __init__(
        self, num_tasks: int | None = None, *, angle: float = 0.8, decay: float = 0.9, scale: Scale = "sum"
    ) -> None:
        super().__init__(num_tasks, scale=scale)
        self.angle: float = check_number("angle", angle, least=0, most=math.pi / 2)
        self.decay: float = check_number("decay", decay, least=0, below=1)
        self.register_buffer("direction", None)

    def reset(self) -> None:
        """Forget the direction."""
        self.direction = None

    def check_state(self, size: int) -> None:
        """See `Balancer.check_state`."""
        super().check_state(size)
        if self.direction is not None and self.direction.shape != (size,):
            raise ValueError(f"the memory has the shape {tuple(self.direction.shape)}; it must be ({size},)")

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Give every gradient the same length, and turn their sum."""
        c = vector(equal_lengths(gradients)).to(gradients.device)
        norm = math.sqrt(max((c @ gradients.gramian @ c).item(), 0.0))
        d = self.direction
        if d is not None and d.numel() != gradients.size:
            sizes = f"{len(d)} numbers and the gradients have {gradients.size}"
            raise ValueError(
                f"the memory has {sizes}: give the same `parameters` at every call, or call reset() for another model"
            )
        if norm <= rounding(gradients.dtype) * max(gradients.squares) ** 0.5:  # they cancel: there is no direction
            return Balance(c, diagnostics={"weight": c})
        if d is None:
            self.direction = gradients.combine(c / norm)
            return Balance(c, diagnostics={"weight": c})
        d = d.to(gradients.dtype)
        product = (c @ gradients.dot(d)).item()
        factors = turn(norm, product, self.angle, self.decay, rounding(gradients.dtype))
        if factors is None:
            return Balance(c, diagnostics={"weight": c})
        d = self.direction = gradients.combine(factors.add * c, d, factors.keep)
        if factors.keep > 1:  # each call multiplies the rounding error of |d| = 1 by this, so that it would grow
            d.div_(torch.linalg.vector_norm(d))
        weight = factors.own * c
        return Balance(weight, d, factors.along, {"weight": weight})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Give the memory the shape that it has in the state, or drop it if the state has none."""
        direction = state_dict.get(prefix + "direction")
        self.direction = None if direction is None else torch.empty_like(direction)
        super()._load_from_state_dict(state_dict, prefix, *args)
