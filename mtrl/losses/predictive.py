"""Predictive task: how well the next attention maps are predicted, and how different the maps of the slots are."""

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
    """The dynamics of attention maps under actions, and the diversity of the maps.

    Terms, both scalars:

    * `attention_dynamics_loss`: KL(map at t + 1 || its prediction), in nats per predicted frame, summed over slots and
      averaged over sequences and the T - 1 frames. It is 0 if all predictions are right.
    * `attention_diversity`: the overlap of slots, that is, the cosine between the maps of two slots, averaged over
      pairs, sequences and frames. It is 1 if all slots have the same map, 0 if no two slots share a position, and 0 if
      there is one slot. Training makes it smaller.

    Args:
        detach_target: whether the dynamics loss gives no gradient to the maps that are predicted. If it does, maps
            learn to be predictable, and those that never move are. Default True.
    """

    detach_target: bool = True

    def __call__(self, outputs: Mapping[str, Any], observations: Steps) -> dict[str, Tensor]:
        """The terms by name, each ().

        Args:
            outputs: see `ModelOutputs`.
            observations: (B, T, C, H, W) with T at least 2; only their sizes are used.

        Raises:
            ValueError: an output is missing or has the wrong shape, or there is only one frame.
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
        attention: (B, T, S, h, w), maps with sum 1.
        predicted: (B, T - 1, S, h, w), the predictions of all maps but the first.

    Returns:
        (B, T - 1).
    """
    return categorical_kl(attention[:, 1:].flatten(-2), predicted.flatten(-2)).sum(-1)


def overlap(attention: Tensor) -> Tensor:
    """The mean cosine between the maps of two slots in `attention` (..., S, h, w), from 0 to 1; 0 for one slot."""
    unit = torch.nn.functional.normalize(attention.flatten(-2), dim=-1)  # (..., S, h w)
    num_slots = unit.shape[-2]
    cosines = unit @ unit.mT
    off_diagonal = cosines.sum((-2, -1)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal / max(num_slots * (num_slots - 1), 1)
