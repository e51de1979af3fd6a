"""A toy problem with two losses and two parameters, on which many gradient balancers get stuck.

The losses come from CAGrad (Liu et al. 2021, https://arxiv.org/abs/2110.14048), and Nash-MTL (Navon et al. 2022,
https://arxiv.org/abs/2202.01017, appendix B) multiplies the first one by 0.1. Everything here is plain Python in
float64, because a training asks for the losses of one point 35,000 times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pair = tuple[float, float]
Formula = Literal["program", "paper"]

SCALE = 0.1  # Nash-MTL's factor of the first loss
SMALLEST = 5e-6  # the logarithms' arguments are at least this
LOWER_BOUND = -20.0  # of each loss before its factor
STARTS: tuple[Pair, ...] = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
RIM = 7.0  # the Pareto set reaches from x = -7 to x = 7
LEARNING_RATE = 1e-3
STEPS = 35_000


@dataclass(frozen=True)
class Toy:
    r"""The two losses at a point theta = (x, y).

    In the upper half plane each loss is a logarithm with a narrow ravine, in the lower half plane a parabola:

        l_i(x, y) = s_i (c_1(y) f_i(x, y) + c_2(y) g_i(x, y)),
        f_1 = log max(|0.5 (-x - 7) - tanh(-y)|, 5e-6) + 6,
        f_2 = log max(|0.5 (-x + 3) + tanh(-y) + 2|, 5e-6) + 6,
        g_1 = ((-x + 7)^2 + 0.1 (-y - 8)^2) / 10 - 20,
        g_2 = ((-x - 7)^2 + 0.1 (-y - 8)^2) / 10 - 20,
        c_1 = max(tanh(0.5 y), 0),   c_2 = max(tanh(-0.5 y), 0),   s = (scale, 1).

    Both papers print `- tanh(-y)` in f_2, and the programs that drew their figures compute `+ tanh(-y)`.

    Args:
        scale: s_1, the factor of the first loss. Default 0.1, as in Nash-MTL; CAGrad has 1.
        formula: which sign f_2 has: `"program"` or `"paper"`. Default `"program"`, the problem of the published
            figures.
    """

    scale: float = SCALE
    formula: Formula = "program"

    def losses(self, x: float, y: float) -> Pair:
        """Both losses at (x, y)."""
        return self.losses_and_gradients(x, y)[0]

    def losses_and_gradients(self, x: float, y: float) -> tuple[Pair, tuple[Pair, Pair]]:
        """Both losses at (x, y), and the gradient of each.

        At a kink the slope is the one that PyTorch takes: 0 of an absolute value at 0, of `max(u, a)` that of `u`
        where u >= a.
        """
        parts = []
        sign = -1.0 if self.formula == "program" else 1.0  # of tanh(y) in f_2
        squashed = math.tanh(y)  # tanh(-y) = -tanh(y)
        slope = 1 - squashed * squashed
        upper, lower = max(math.tanh(0.5 * y), 0.0), max(math.tanh(-0.5 * y), 0.0)
        upper_slope = 0.5 * (1 - upper * upper) if y >= 0 else 0.0
        lower_slope = -0.5 * (1 - lower * lower) if y <= 0 else 0.0
        for inner, inner_y, centre in (
            (0.5 * (-x - 7) + squashed, slope, 7.0),
            (0.5 * (-x + 3) + sign * squashed + 2, sign * slope, -7.0),
        ):
            size = abs(inner)
            f = math.log(max(size, SMALLEST)) + 6
            inverse = 1 / inner if size >= SMALLEST else 0.0
            g = ((x - centre) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
            parts.append(
                (
                    upper * f + lower * g,
                    -0.5 * upper * inverse + lower * 0.2 * (x - centre),
                    upper_slope * f + upper * inverse * inner_y + lower_slope * g + lower * 0.02 * (y + 8),
                )
            )
        (first, first_x, first_y), (second, second_x, second_y) = parts
        s = self.scale
        return (s * first, second), ((s * first_x, s * first_y), (second_x, second_y))

    def grid(self, xs: Array, ys: Array) -> Array:
        """Both losses (2, Y, X) at every point of a grid with the abscissae `xs` (X,) and the ordinates `ys` (Y,)."""
        values = [[self.losses(x, y) for x in xs.tolist()] for y in ys.tolist()]
        return np.moveaxis(np.array(values), -1, 0)

    def along(self, path: Array) -> Array:
        """Both losses (P, 2) at the points of `path` (P, 2)."""
        return np.array([self.losses(x, y) for x, y in path.tolist()])


class ParetoSet:
    """The points at which no loss can be lowered without raising the other one.

    They form a line between the minima of the two losses, at x from -7 to 7: there a weighted sum of the two parabolas
    has its minimum at x, and at the y where

        d/dy [tanh(-y / 2) (0.01 (y + 8)^2 + (49 - x^2) / 10 - 20)] = 0,

    which bisection finds. Positive factors of the losses do not change this set. All of the upper half plane is worse,
    as no logarithm falls below -6.3.

    Args:
        points: how many points of the line are computed; between them it is interpolated. Default 1,401.

    Attributes:
        points: (points, 2), by increasing x.
    """

    def __init__(self, points: int = 1401) -> None:
        xs = np.linspace(-RIM, RIM, points)
        low, high = np.full(points, -12.0), np.full(points, -8.0)
        for _ in range(60):
            y = (low + high) / 2
            c = np.tanh(-y / 2)
            slope = -0.5 * (1 - c**2) * (0.01 * (y + 8) ** 2 + (49 - xs**2) / 10 - 20) + c * 0.02 * (y + 8)
            low, high = np.where(slope < 0, y, low), np.where(slope < 0, high, y)
        self.points: Array = np.stack([xs, (low + high) / 2], 1)

    def distance(self, x: float, y: float) -> float:
        """How far (x, y) is from the set.

        The line is so flat (its slope is below 0.04) that its point at the same x counts as the nearest one.
        """
        nearest = min(max(x, -RIM), RIM)
        return math.hypot(x - nearest, y - float(np.interp(nearest, *self.points.T)))
