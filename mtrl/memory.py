"""What past updates had in common, mixed into each new one: a transformation behind any balancer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.limits import check_number


@dataclass(frozen=True)
class Turn:
    """One turn of an update g with memory d: d becomes `keep` d + `add` g, and then g becomes `own` g + `along` d."""

    keep: float
    add: float
    own: float
    along: float


def turn(norm: float, product: float, angle: float, decay: float, rounding: float) -> Turn | None:
    """The factors of one turn; see `DirectionMemory`.

    Args:
        norm: |g|, above 0 and finite.
        product: g.d, finite.
        angle: how far to turn at most, in radians.
        decay: the share of the memory that is kept.
        rounding: a sine below this counts as 0.

    Returns:
        The factors; None if g points exactly against what is remembered and both cancel.
    """
    cosine = max(-1.0, min(1.0, product / norm))
    square = decay**2 + (1 - decay) ** 2 + 2 * decay * (1 - decay) * cosine
    length = math.sqrt(max(square, 0.0))  # of decay d + (1 - decay) y
    if length <= rounding:
        return None
    keep, add = decay / length, (1 - decay) / length
    cosine = max(-1.0, min(1.0, keep * cosine + add))  # of the new memory and y
    sine = math.sqrt(1 - cosine**2)
    if sine <= rounding:
        return Turn(keep, add / norm, 1.0, 0.0)
    angle = min(angle, math.acos(cosine))
    along = math.sin(angle) / sine
    return Turn(keep, add / norm, math.cos(angle) - along * cosine, norm * along)


class DirectionMemory(nn.Module):
    r"""Turns an update towards the direction that past updates had in common.

    With an update g (D,), y = g/|g|, and the remembered direction d, a unit vector:

        d <- normalise(decay d + (1 - decay) y),   d = y at first,
        g <- |g| (cos(a) y + sin(a) w),            w = normalise(d - (d.y) y),

    so that the update keeps its length and turns by a, in the plane of g and d. The turn stops at d: a is `angle` or
    the angle between y and d, whichever is smaller.

    **What it is.** A normalised momentum (Cutkosky & Mehta 2020, https://arxiv.org/abs/2002.03305) that is averaged
    with the present gradient, as in the quasi-hyperbolic momentum of Ma & Yarats (2019,
    https://arxiv.org/abs/1810.06801) and in AdEMAMix (Pagliardini et al. 2024, https://arxiv.org/abs/2409.03137). Here
    the remembered part has the length of the present gradient, whatever the noise. Since d is brought back to length 1
    at every call, it forgets slowly where gradients are mostly noise (y and d nearly orthogonal: 0.9 is 0.994 then) and
    quickly where they agree.

    **When it should not help.** Where the noise of a batch is small, g and d agree, and nothing is turned. Where the
    right direction changes within a few updates, what is remembered is old.

    Give it to `Balancer.backward(losses, memory=memory)`, or call `turn_` on a vector of your own before the optimizer
    uses it.

    Args:
        angle: a in radians, from 0 (which turns nothing) to pi/2. Default 0.8.
        decay: the share of the memory that is kept, in [0, 1). Default 0.9.

    Attributes:
        direction: d, of the shape of the updates; None before the first call. It is part of `state_dict`.

    Raises:
        ValueError: an argument is out of range.
    """

    direction: Tensor | None

    def __init__(self, angle: float = 0.8, decay: float = 0.9) -> None:
        super().__init__()
        self.angle: float = check_number("angle", angle, least=0, most=math.pi / 2)
        self.decay: float = check_number("decay", decay, least=0, below=1)
        self.register_buffer("direction", None)

    def reset(self) -> None:
        """Forget the direction."""
        self.direction = None

    @torch.no_grad()
    def turn_(self, update: Tensor) -> Tensor:
        """Turn `update` in place, and return it.

        A row that is zero or not finite stays as it is and is not remembered.

        Args:
            update: g (D,), or R of them, (R, D), each with a memory of its own.

        Raises:
            ValueError: the update has another shape than the one before.
        """
        memory = self.direction
        if memory is None:
            memory = self.direction = torch.zeros_like(update)
        if memory.shape != update.shape:
            known, new = (" x ".join(map(str, shape)) for shape in (memory.shape, update.shape))
            raise ValueError(f"the memory has {known} numbers and the update {new}; call reset() for another model")
        if memory.dtype != update.dtype or memory.device != update.device:
            memory = self.direction = memory.to(update)
        for g, d in [(update, memory)] if update.ndim == 1 else zip(update, memory, strict=True):
            self._turn_row(g, d)
        return update

    def _turn_row(self, g: Tensor, d: Tensor) -> None:
        square, product = torch.dot(g, g).item(), torch.dot(g, d).item()
        # The square of a very long or very short vector overflows or loses digits; its norm does not.
        norm = math.sqrt(square) if 1e-30 < square < 1e30 else torch.linalg.vector_norm(g).item()
        if not 0 < norm < math.inf:
            return
        if product == 0 and not d.any():  # nothing is remembered yet
            torch.div(g, norm, out=d)
            return
        factors = turn(norm, product, self.angle, self.decay, rounding(g.dtype))
        if factors is None:
            return
        d.mul_(factors.keep).add_(g, alpha=factors.add)
        if factors.keep > 1:  # each call multiplies the rounding error of |d| = 1 by this, so that it would grow
            d.div_(torch.linalg.vector_norm(d))
        if factors.along:
            g.mul_(factors.own).add_(d, alpha=factors.along)

    def check(self, size: int) -> None:
        """Make sure that a memory which was loaded fits updates of `size` numbers over all rows.

        Raises:
            ValueError: it has another size, or a row of it is neither of length 1 nor 0.
        """
        d = self.direction
        if d is None:
            return
        if d.numel() != size:
            raise ValueError(f"the memory has {d.numel():,} numbers, and there are {size:,} parameters")
        for length in torch.linalg.vector_norm(d, dim=-1).flatten().tolist():
            if not (length == 0 or abs(length - 1) < rounding(d.dtype)):
                raise ValueError(
                    f"a direction in the memory has length {length:g}; it must be 1, or 0 at the beginning"
                )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Give the memory the shape that it has in the state, or drop it if the state has none."""
        direction = state_dict.get(prefix + "direction")
        self.direction = None if direction is None else torch.empty_like(direction)
        super()._load_from_state_dict(state_dict, prefix, *args)


def rounding(dtype: torch.dtype) -> float:
    """The length below which a difference of two unit vectors is noise, if they were computed in `dtype`."""
    return 10 * math.sqrt(torch.finfo(dtype).eps)
