"""PCGrad: each task's gradient gives up what conflicts with the others."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.balancers.base import Balance, RandomBalancer
from mtrl.gradients import TaskGradients

Array = NDArray[np.float64]

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

    def draw_order(self, num_tasks: int) -> NDArray[np.intp]:
        """The other tasks in random order for each task, (T, T - 1)."""
        keys = self.generator.random((num_tasks, num_tasks))
        keys.flat[:: num_tasks + 1] = 2.0  # the diagonal, above all others: the task itself comes last, and is cut off
        return keys.argsort(axis=1)[:, :-1]

    def balance_gramian(self, gramian: Tensor) -> Balance:
        """The answer for rows of this Gramian (T, T), which is all that the method asks of them."""
        G = gramian.numpy(force=True)
        inverse = np.array([1 / square if square > SMALLEST else 0.0 for square in G.diagonal().tolist()])
        ratios = G * inverse  # <g_i, g_j> / |g_j|^2
        project = project_few if len(G) <= FEW else project_many
        coefficients, conflicts = project(ratios, self.draw_order(len(G)))
        weight = torch.from_numpy(coefficients).to(gramian.device)
        norms = np.sqrt(inverse)
        cosine = torch.from_numpy(G * norms * norms[:, None])
        diagnostics = {"weight": weight, "conflicts": torch.from_numpy(conflicts), "cosine": cosine}
        return Balance(weight, diagnostics=diagnostics)

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Project on the Gramian; where the random order goes on is all that the next call remembers."""
        return self.balance_gramian(gradients.gramian)


def project_few(ratios: Array, partners: NDArray[np.intp]) -> tuple[Array, Array]:
    """Algorithm 1 on the Gramian, task by task.

    Args:
        ratios: <g_i, g_j> / |g_j|^2, (T, T); 0 in the columns of zero gradients.
        partners: the order in which each task meets the others, (T, T - 1).

    Returns:
        The coefficients sum_i P_ik (T,), and each task's number of projections (T,).
    """
    rows = ratios.tolist()
    coefficients, conflicts = [1.0] * len(rows), [0.0] * len(rows)
    for i, order in enumerate(partners.tolist()):
        products = rows[i]  # of g_i^pc with g_j, over |g_j|^2
        for j in order:
            step = products[j]
            if step < 0:
                coefficients[j] -= step
                conflicts[i] += 1
                products = [product - step * other for product, other in zip(products, rows[j], strict=True)]
    return np.array(coefficients), np.array(conflicts)


def project_many(ratios: Array, partners: NDArray[np.intp]) -> tuple[Array, Array]:
    """`project_few` for all tasks at once: step k treats the k-th partner of each, as they do not see each other's."""
    num_tasks = len(ratios)
    projected, steps = ratios.copy(), np.zeros((num_tasks - 1, num_tasks))
    for step, j in zip(steps, partners.T, strict=True):
        np.minimum(projected[np.arange(num_tasks), j], 0.0, out=step)  # below 0 in conflict; -P_ij
        projected -= step[:, None] * ratios[j]
    coefficients = 1.0 - np.bincount(partners.T.ravel(), steps.ravel(), num_tasks)
    return coefficients.astype(np.float64, copy=False), (steps < 0).sum(axis=0, dtype=np.float64)
