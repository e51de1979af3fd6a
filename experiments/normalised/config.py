"""Settings of normalised gradients."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.training.config import TrainConfig, presets


@dataclass(frozen=True)
class NormalisedConfig(TrainConfig):
    """Train one shared Q-network on all tasks with task gradients of equal length, summed."""

    method: ClassVar[str] = "normalised"
    balancer: ClassVar[str] = "normalised"


PRESETS = presets(NormalisedConfig)
