"""PCGrad: each task's gradient gives up what conflicts with the others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtrl.balancers.base import Balance, Deferred, RandomBalancer
from mtrl.conflict import cosines
from mtrl.gradients import TaskGradients

SMALLEST = float(np.finfo(np.float64).tiny)  # its inverse is finite
FEW = 8  # tasks, up to which plain numbers are faster than arrays


class PCGrad(RandomBalancer):
    r"""Projecting conflicting gradients (Yu et al. 2020, https://arxiv.org/abs/2001.06782), Algorithm 1.

    For each task i, starting from g_i^pc = g_i, over the other tasks j in random order, fresh for each i,

        if <g_i^pc, g_j> < 0:   g_i^pc  <-  g_i^pc - <g_i^pc, g_j> / |g_j|^2 * g_j,

    always against the *raw* g_j; the update is sum_i g_i^pc. Every g_i^pc is a combination of the rows,
    g_i^pc = sum_k P_ik g_k, and its inner products with them are P G, so all of this happens on the Gramian G. A task
    with a zero gradient conflicts with nobody. Losses may have any sign.

    Args:
        num_tasks: T; may be left out.
        seed: see `RandomBalancer`. Default 0.
        scale: see `Balancer`.

    Diagnostics: `weight` (T,), the coefficients sum_i P_ik; `conflicts` (T,), how many projections each task's
    gradient went through; `cosine` (T, T) of the raw gradients.
    """

    needs_gramian = True

    def draw_order(self, num_tasks: int) -> list[list[int]]:
        """The other tasks in random order for each task, T x (T - 1)."""
        keys = self.generator.random((num_tasks, num_tasks))
        if num_tasks <= FEW:
            others = [[j for j in range(num_tasks) if j != i] for i in range(num_tasks)]
            return [sorted(row, key=own.__getitem__) for row, own in zip(others, keys.tolist(), strict=True)]
        keys.flat[:: num_tasks + 1] = 2.0  # the diagonal, above all others: the task itself comes last, and is cut off
        order: list[list[int]] = keys.argsort(axis=1)[:, :-1].tolist()
        return order

    def balance_gramian(self, gramian: Tensor) -> Balance:
        """The answer for rows of this Gramian (T, T), which is all that the method asks of them."""
        project = project_few if len(gramian) <= FEW else project_many
        coefficients, conflicts = project(gramian.tolist(), self.draw_order(len(gramian)))
        weight = torch.tensor(coefficients, dtype=torch.float64, device=gramian.device)
        return Balance(
            weight,
            diagnostics=Deferred(
                lambda: {
                    "weight": weight,
                    "conflicts": torch.tensor(conflicts, dtype=torch.float64),
                    "cosine": cosines(gramian),
                }
            ),
        )

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Project on the Gramian; where the random order goes on is all that the next call remembers."""
        return self.balance_gramian(gradients.gramian)


def project_few(gramian: list[list[float]], partners: list[list[int]]) -> tuple[list[float], list[int]]:
    """Algorithm 1 on the Gramian, task by task.

    Args:
        gramian: G, T x T.
        partners: the order in which each task meets the others, T x (T - 1).

    Returns:
        The coefficients sum_i P_ik, and each task's number of projections.
    """
    squares = [row[i] for i, row in enumerate(gramian)]
    inverse = [1 / square if square > SMALLEST else 0.0 for square in squares]  # a zero gradient conflicts with nobody
    rows = [[product * own for product, own in zip(row, inverse, strict=True)] for row in gramian]
    coefficients, conflicts = [1.0] * len(rows), [0] * len(rows)
    for i, order in enumerate(partners):
        products = rows[i]  # of g_i^pc with g_j, over |g_j|^2
        for j in order:
            step = products[j]
            if step < 0:
                coefficients[j] -= step
                conflicts[i] += 1
                products = [product - step * other for product, other in zip(products, rows[j], strict=True)]
    return coefficients, conflicts


def project_many(gramian: list[list[float]], partners: list[list[int]]) -> tuple[list[float], list[int]]:
    """`project_few` for all tasks at once: step k treats the k-th partner of each, as they do not see each other's."""
    G, order = np.array(gramian), np.array(partners, dtype=np.intp).T  # (T, T), (T - 1, T)
    squares, num_tasks = G.diagonal(), len(G)
    ratios = G * np.divide(1.0, squares, out=np.zeros(num_tasks), where=squares > SMALLEST)
    projected, steps = ratios.copy(), np.zeros((num_tasks - 1, num_tasks))
    for step, j in zip(steps, order, strict=True):
        np.minimum(projected[np.arange(num_tasks), j], 0.0, out=step)  # below 0 in conflict; -P_ij
        projected -= step[:, None] * ratios[j]
    coefficients = 1.0 - np.bincount(order.ravel(), steps.ravel(), num_tasks)
    return coefficients.tolist(), (steps < 0).sum(axis=0).tolist()
