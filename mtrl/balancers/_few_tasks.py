"""The inner loops of PCGrad and RGB in plain Python numbers, which up to `FEW` tasks are faster than NumPy arrays.

Read `pcgrad.py` and `rgb.py` first: the functions here compute the same as the array forms there, and the tests compare
the two. For three tasks the array forms make an update of an agent 5 to 8 % slower.
"""

from __future__ import annotations

import math

Numbers = list[float]  # one per task

FEW = 8


def project(gramian: list[Numbers], order: list[list[int]], smallest: float) -> tuple[Numbers, list[int]]:
    """Compute what `mtrl.balancers.pcgrad.project` computes, from the same arguments."""
    squares = [row[i] for i, row in enumerate(gramian)]
    inverse = [1 / square if square > smallest else 0.0 for square in squares]
    ratios = [[product * own for product, own in zip(row, inverse, strict=True)] for row in gramian]
    coefficients, conflicts = [1.0] * len(ratios), [0] * len(ratios)
    for i, others in enumerate(order):
        projected = ratios[i]  # <g_i^pc, g_j> / |g_j|^2 for every j
        for j in others:
            step = projected[j]
            if step < 0:
                coefficients[j] -= step
                conflicts[i] += 1
                projected = [product - step * other for product, other in zip(projected, ratios[j], strict=True)]
    return coefficients, conflicts


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
    """Compute what `mtrl.balancers.rgb.rotate` computes, from the same arguments."""
    tasks = range(len(angles))
    uw = [[(c[i] - c[j] * C[i][j]) * inverse_s[j] for j in tasks] for i in tasks]  # u_i.w_j
    ww = [  # w_i.w_j
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
            after[i] = min(max(after[i] - rate * gradient, 0.0), largest)
    return after
