"""The moving average of the encoder, whose patches the Gram term compares with those of the encoder itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments.world_model.frames import Trunk

DECAY = 0.99  # of the moving average, per update


class Teacher:
    """An encoder whose weights are the moving average of the trunk's.

    The trunk's patches should stay as similar to each other as the teacher's are (Simeoni et al. 2025,
    https://arxiv.org/abs/2508.10104), so that one objective does not dissolve what the patches of a craft have in
    common.

    Args:
        trunk: the encoder to follow.
    """

    def __init__(self, trunk: Trunk) -> None:
        follow = get_ema_multi_avg_fn(DECAY)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(trunk, multi_avg_fn=follow)

    @torch.no_grad()
    def patches(self, frames: Tensor) -> Tensor:
        """The teacher's patches (B, T, P, F) of frames (B, T, C, H, W), which have no gradient."""
        patches: Tensor = self._average(frames.flatten(0, 1)).patches
        return torch.unflatten(patches.flatten(2).mT, 0, frames.shape[:2])

    def follow(self, trunk: Trunk) -> None:
        """Move the average towards the weights of `trunk`."""
        self._average.update_parameters(trunk)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._average.load_state_dict(state)
