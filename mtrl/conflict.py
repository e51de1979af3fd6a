"""How much the task gradients disagree, computed from their Gramian `G = J J^T`, (T, T).

`TaskGradients.gramian` gives the Gramian. The cost does not depend on the number of parameters. A task with a zero
gradient has no direction: its cosines and similarities are 0, it conflicts with no other task, and it is left out of
the ratio of norms.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cosines(gramian: Tensor) -> Tensor:
    """`cos(g_i, g_j) = <g_i, g_j> / (|g_i| |g_j|)` for every pair, (T, T); 0 if one of the gradients is zero.

    Two gradients conflict when their cosine is negative: Definition 1 of Yu et al., "Gradient Surgery for Multi-Task
    Learning" (2020), https://arxiv.org/abs/2001.06782.
    """
    squares = gramian.diagonal()
    inverse = squares.rsqrt().nan_to_num(0.0, posinf=0.0)
    return (gramian * inverse * inverse.unsqueeze(1)).clamp_(-1.0, 1.0)


def conflict_share(gramian: Tensor) -> Tensor:
    """The share of the `T (T - 1) / 2` pairs of tasks whose gradients conflict, (); 0 for one task.

    Gradients conflict when their inner product is negative: Yu et al. (2020), Definition 1.
    """
    num_tasks = len(gramian)
    pairs = num_tasks * (num_tasks - 1) / 2
    return (gramian.triu(1) < 0).sum(dtype=gramian.dtype) / max(pairs, 1)


def norm_ratio(gramian: Tensor) -> Tensor:
    """`max_i |g_i| / min_i |g_i|` over the gradients that are not zero, (); 1 if all are zero.

    This is the imbalance that GradNorm removes: Chen et al. (2018), https://arxiv.org/abs/1711.02257.
    """
    norms = gramian.diagonal().sqrt()
    norms = norms[norms > 0]
    return norms.max() / norms.min() if len(norms) else gramian.new_ones(())


def magnitude_similarity(gramian: Tensor) -> Tensor:
    """`2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2)` for every pair, (T, T): 1 for equal norms, near 0 for very different norms.

    Definition 2 of Yu et al. (2020), https://arxiv.org/abs/2001.06782. It is 0 for a pair with a zero gradient.
    """
    squares = gramian.diagonal()
    total = squares + squares.unsqueeze(1)
    norms = squares.sqrt()
    return torch.where(total > 0, 2 * norms * norms.unsqueeze(1) / total, 0.0)


def conflict_metrics(gramian: Tensor) -> dict[str, Tensor]:
    """All measures by name: `cosine` (T, T), `conflict_share` (), `norm_ratio` (), `magnitude_similarity` (T, T)."""
    return {
        "cosine": cosines(gramian),
        "conflict_share": conflict_share(gramian),
        "norm_ratio": norm_ratio(gramian),
        "magnitude_similarity": magnitude_similarity(gramian),
    }
