"""Predictive task: how well the next attention maps are predicted, and how different the maps of the slots are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from mtrl.limits import check_choice
from mtrl.losses.divergences import categorical_kl
from mtrl.losses.outputs import OutputReader, Steps

Dynamics = Literal["maps", "movement"]
Diversity = Literal["cosine", "squared_cosine"]


@dataclass(frozen=True)
class PredictiveLoss:
    """The dynamics of attention maps under actions, and the diversity of the maps.

    Terms, both scalars:

    * `attention_dynamics_loss`: KL(map at t + 1 || its prediction), in nats per predicted frame, summed over slots and
      averaged over sequences and the T - 1 frames. It is 0 if all predictions are right. With `dynamics="movement"`
      it is `movement_error`, in cells or squares of cells of the map.
    * `attention_diversity`: the overlap of slots, that is, the cosine between the maps of two slots, averaged over
      pairs, sequences and frames. It is 1 if all slots have the same map, 0 if no two slots share a position, and 0 if
      there is one slot. Training makes it smaller. With `diversity="squared_cosine"` it is the mean of the squares.

    Args:
        detach_target: whether the dynamics loss gives no gradient to the maps that are predicted. If it does, maps
            learn to be predictable, and those that never move are. Default True.
        dynamics: what is predicted: `"maps"`, or the `"movement"` of their centres of mass. Default `"maps"`.
        diversity: `"cosine"` or `"squared_cosine"`. Default `"cosine"`.

    Raises:
        ValueError: a choice is unknown.
    """

    detach_target: bool = True
    dynamics: Dynamics = "maps"
    diversity: Diversity = "cosine"

    def __post_init__(self) -> None:
        """Check the choices."""
        check_choice("dynamics", self.dynamics, get_args(Dynamics))
        check_choice("diversity", self.diversity, get_args(Diversity))

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
        target = attention.detach() if self.detach_target else attention
        if self.dynamics == "maps":
            dynamics = attention_dynamics(target, read("predicted_attention", "B T-1 S h w")).mean()
        else:
            dynamics = movement_error(target, read("predicted_movement", "B T-1 S 2"))
        return {
            "attention_dynamics_loss": dynamics,
            "attention_diversity": overlap(attention, squared=self.diversity == "squared_cosine").mean(),
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


def centres(attention: Tensor) -> Tensor:
    """The centres of mass (..., 2) of maps (..., h, w) with sum 1: the column x and the row y, in cells from 0."""
    h, w = attention.shape[-2:]
    rows, columns = (torch.arange(n, dtype=attention.dtype, device=attention.device) for n in (h, w))
    return torch.stack([attention.sum(-2) @ columns, attention.sum(-1) @ rows], -1)


def movement_error(attention: Tensor, predicted: Tensor) -> Tensor:
    """Smooth absolute error of the predicted movements of the maps' centres of mass.

    An error e in cells counts as e^2/2 up to 1, and as |e| - 1/2 beyond. The means of the errors along x and along y
    over sequences, frames and slots are added.

    Args:
        attention: (B, T, S, h, w), maps with sum 1.
        predicted: (B, T - 1, S, 2), movements in cells along x and y from each frame to the next.

    Returns:
        A scalar, 0 if all predictions are right.
    """
    return 2 * smooth_l1_loss(predicted, centres(attention).diff(dim=1))


def overlap(attention: Tensor, *, squared: bool = False) -> Tensor:
    """The mean cosine between the maps of two slots, or its mean square, from 0 to 1; 0 for one slot.

    Args:
        attention: (..., S, h, w).
        squared: whether to square the cosines.

    Returns:
        (...).
    """
    unit = normalize(attention.flatten(-2), dim=-1)  # (..., S, h w)
    num_slots = unit.shape[-2]
    cosines = (unit @ unit.mT).square() if squared else unit @ unit.mT
    off_diagonal = cosines.sum((-2, -1)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal / max(num_slots * (num_slots - 1), 1)
