"""Gram matrices of features: how far they are from those of orthogonal slots, and from those of a teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mtrl.losses.outputs import widened


def gram_penalty(slots: Tensor) -> Tensor:
    """|G - I|^2/(S(S - 1)) with the Gram matrix G of `slots` (..., S, F), scaled to unit length; 0 for one slot."""
    unit = normalize(slots, dim=-1, eps=1e-6)
    squares = (unit @ unit.mT).square()
    num_slots = slots.shape[-2]
    off_diagonal = squares.sum((-2, -1)) - squares.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal / max(num_slots * (num_slots - 1), 1)


def gram_distance(features: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    """Mean of (max(0, G) - max(0, G'))^2 over the Gram matrices of features and of a teacher's, summed over levels.

    G holds the cosines between the features of all pairs of places in one frame. The features may turn, as long as
    places that are alike for the teacher stay alike. Negative cosines count as 0 on both sides. It is the Gram loss of
    DINOv3 (Simeoni et al. 2025, https://arxiv.org/abs/2508.10104) with positive similarities. The teacher is meant to
    be a moving average of the encoder.

    Args:
        features: one tensor (..., N, F) of N places, or one for each level of the encoder.
        teacher: the same from the teacher; it gets no gradient. Its F may differ.

    Returns:
        A scalar, 0 where all cosines agree, and at most 1 per level.

    Raises:
        ValueError: there are no levels, or the two differ in number or in a shape apart from F.
    """
    own, other = ([each] if isinstance(each, Tensor) else list(each) for each in (features, teacher))
    shapes = [[tuple(level.shape) for level in levels] for levels in (own, other)]
    if (
        [shape[:-1] for shape in shapes[0]] != [shape[:-1] for shape in shapes[1]]
        or not own
        or min(map(len, shapes[0])) < 2
    ):
        raise ValueError(
            f"encoder_features have the shapes {shapes[0]} and teacher_features {shapes[1]}; expected (..., N, F) at "
            "each level, the same but for F"
        )
    each = [(_cosines(a) - _cosines(b.detach())).square().mean() for a, b in zip(own, other, strict=True)]
    return torch.stack(each).sum()


def _cosines(features: Tensor) -> Tensor:
    """The cosines (..., N, N) between places, negative ones as 0."""
    unit = normalize(widened(features), dim=-1, eps=1e-6)
    return (unit @ unit.mT).relu()
