"""Synthetic task gradients whose conflict is known, and where RGB turns them."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl import RGB
from mtrl.conflict import cosines


def conflicting_gradients(
    num_tasks: int, size: int, cosine: float, norm_ratio: float, generator: torch.Generator
) -> Tensor:
    """Gradients (T, D) of which every pair has the same cosine, with norms from 1 to `norm_ratio`.

    Args:
        num_tasks: T.
        size: D, at least T.
        cosine: of every pair, in (-1/(T - 1), 1): T vectors cannot all be further apart.
        norm_ratio: largest norm; the norms are evenly spaced in their logarithm.
        generator: of the random directions.
    """
    C = torch.full((num_tasks, num_tasks), cosine, dtype=torch.float64).fill_diagonal_(1.0)
    axes, _ = torch.linalg.qr(torch.randn(size, num_tasks, generator=generator, dtype=torch.float64))  # (D, T)
    norms = torch.tensor(norm_ratio, dtype=torch.float64) ** torch.linspace(0, 1, num_tasks, dtype=torch.float64)
    directions: Tensor = torch.linalg.cholesky(C) @ axes.T
    return norms.unsqueeze(1) * directions


def rotated(jacobian: Tensor, rgb: RGB, angles: Tensor) -> Tensor:
    """The unit gradients (T, D) after RGB turned those of `jacobian` by `angles` (T,) towards its consensus."""
    unit = torch.nn.functional.normalize(jacobian, dim=1)
    if rgb.consensus is None:
        return unit
    along = unit @ rgb.consensus
    across = torch.nn.functional.normalize(rgb.consensus - along.unsqueeze(1) * unit, dim=1)
    return angles.cos().unsqueeze(1) * unit + angles.sin().unsqueeze(1) * across


def mean_cosine(jacobian: Tensor) -> float:
    """Mean cosine over the pairs of rows of `jacobian` (T, D)."""
    C, num_tasks = cosines(jacobian @ jacobian.T), len(jacobian)
    return float((C.sum() - C.trace()) / (num_tasks * (num_tasks - 1)))
