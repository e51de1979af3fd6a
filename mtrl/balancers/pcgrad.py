"""PCGrad: each task's gradient loses the part that conflicts with the gradients of the other tasks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtrl.balancers import _few_tasks
from mtrl.balancers.base import Balance, Deferred
from mtrl.balancers.random_balancer import RandomBalancer
from mtrl.conflict import cosines
from mtrl.gradients import TaskGradients

SMALLEST = float(np.finfo(np.float64).tiny)  # the inverse of a smaller square would be infinite


class PCGrad(RandomBalancer):
    r"""Projecting conflicting gradients (Yu et al. 2020, https://arxiv.org/abs/2001.06782), Algorithm 1.

    For each task i, starting from g_i^pc = g_i, over the other tasks j in random order, fresh for each i,

        if <g_i^pc, g_j> < 0:   g_i^pc  <-  g_i^pc - <g_i^pc, g_j> / |g_j|^2 * g_j,

    always against the *raw* g_j; the update is sum_i g_i^pc. Every g_i^pc is a combination of the rows,
    g_i^pc = sum_k P_ik g_k, and its inner products with the rows are P G, so that the algorithm runs on the Gramian G.
    A task with a zero gradient conflicts with no other task. Losses may have any sign.

    Args:
        num_tasks: T; may be left out.
        seed: see `RandomBalancer`. Default 0.
        scale: see `Balancer`.

    Diagnostics: `weight` (T,), the coefficients sum_i P_ik; `conflicts` (T,), how many projections each task's
    gradient went through; `cosine` (T, T) of the raw gradients.
    """

    looks_at = "gramian"

    def draw_order(self, num_tasks: int) -> list[list[int]]:
        """For each task, the other tasks in random order, T x (T - 1)."""
        keys = self.generator.random((num_tasks, num_tasks))
        keys.flat[:: num_tasks + 1] = 2.0  # puts the task itself last, where it is cut off
        order: list[list[int]] = keys.argsort(axis=1)[:, :-1].tolist()
        return order

    def balance_gramian(self, gramian: Tensor) -> Balance:
        """The answer for rows with this Gramian (T, T). The method needs to know nothing else about the rows."""
        order = self.draw_order(len(gramian))
        projection = project if len(gramian) > _few_tasks.FEW else _few_tasks.project
        coefficients, conflicts = projection(gramian.tolist(), order, SMALLEST)
        weight = torch.tensor(coefficients, dtype=torch.float64, device=gramian.device)
        return Balance(
            weight,
            diagnostics=Deferred(
                lambda: {
                    "weight": weight,
                    "conflicts": torch.tensor(conflicts, dtype=torch.float64, device="cpu"),
                    "cosine": cosines(gramian),
                }
            ),
        )

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Project the gradients. Only the state of the random generator carries over to the next call."""
        return self.balance_gramian(gradients.gramian)


def project(gramian: list[list[float]], order: list[list[int]], smallest: float) -> tuple[list[float], list[int]]:
    """Algorithm 1 on the Gramian, for all tasks at once: the k-th step treats the k-th partner of every task.

    The tasks can be treated at once because each is projected on the raw gradients of the others.

    Args:
        gramian: G, T x T.
        order: the order in which each task meets the others, T x (T - 1).
        smallest: a gradient with a squared norm up to this counts as zero and conflicts with no other.

    Returns:
        The coefficients sum_i P_ik, and the number of projections of each task's gradient.
    """
    G, partners = np.array(gramian), np.array(order, dtype=np.intp).T  # (T, T), (T - 1, T)
    squares, num_tasks = G.diagonal(), len(G)
    ratios = G * np.divide(1.0, squares, out=np.zeros(num_tasks), where=squares > smallest)
    projected = ratios.copy()  # <g_i^pc, g_j> / |g_j|^2
    steps = np.zeros((num_tasks - 1, num_tasks))  # -P_ij, below 0 where i conflicts with its partner j
    for step, j in zip(steps, partners, strict=True):
        np.minimum(projected[np.arange(num_tasks), j], 0.0, out=step)
        projected -= step[:, None] * ratios[j]
    coefficients = 1.0 - np.bincount(partners.ravel(), steps.ravel(), num_tasks)
    return coefficients.tolist(), (steps < 0).sum(axis=0).tolist()
