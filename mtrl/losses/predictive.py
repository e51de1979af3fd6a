"""Predictive: whether the next attention maps were foreseen, and whether slots look at different places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtrl.losses.divergences import categorical_kl
from mtrl.losses.outputs import OutputReader, Steps


@dataclass(frozen=True)
class PredictiveLoss:
    """The dynamics of attention maps, given actions, and their diversity.

    Terms, both scalars:

    * `attention_dynamics_loss`: KL(map at t + 1 || what was predicted for it), in nats per predicted frame: summed over
      slots, mean over sequences and the T - 1 frames. 0 where the prediction is right.
    * `attention_diversity`: how much slots overlap: the cosine of two slots' maps, mean over pairs, sequences and
      frames; from 0 (no position is shared) to 1 (all look at the same). To be made smaller. 0 for one slot.

    Args:
        detach_target: whether the maps that were to be predicted get no gradient of the dynamics. Otherwise maps learn
            to be predictable, which never moving is. Default True.
    """

    detach_target: bool = True

    def __call__(self, outputs: Mapping[str, Any], observations: Steps) -> dict[str, Tensor]:
        """The terms by name, each ().

        Args:
            outputs: see `ModelOutputs`.
            observations: (B, T, C, H, W), T at least 2; only the sizes matter.

        Raises:
            ValueError: an output is missing or has the wrong shape, or there is one frame only.
        """
        read = OutputReader(outputs, observations)
        if read.sizes["T"] < 2:
            raise ValueError("observations have 1 frame; attention dynamics need at least 2")
        attention = read("attention", "B T S h w")
        predicted = read("predicted_attention", "B T-1 S h w")
        target = attention.detach() if self.detach_target else attention
        return {
            "attention_dynamics_loss": attention_dynamics(target, predicted).mean(),
            "attention_diversity": overlap(attention).mean(),
        }


def attention_dynamics(attention: Tensor, predicted: Tensor) -> Tensor:
    """KL(map at t + 1 || prediction) in nats, summed over slots.

    Args:
        attention: (B, T, S, h, w), each map sums to 1.
        predicted: (B, T - 1, S, h, w), of the maps from the second on.

    Returns:
        (B, T - 1).
    """
    return categorical_kl(attention[:, 1:].flatten(-2), predicted.flatten(-2)).sum(-1)


def overlap(attention: Tensor) -> Tensor:
    """Mean cosine of two slots' maps of `attention` (..., S, h, w), from 0 to 1; 0 for one slot; (...)."""
    unit = torch.nn.functional.normalize(attention.flatten(-2), dim=-1)  # (..., S, h w)
    num_slots = unit.shape[-2]
    cosines = unit @ unit.mT
    off_diagonal = cosines.sum((-2, -1)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal / max(num_slots * (num_slots - 1), 1)
