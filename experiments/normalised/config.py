"""Settings of normalised gradients."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import MethodSettings
from experiments.training.presets import presets


@dataclass(frozen=True)
class NormalisedSettings(MethodSettings):
    """What gradients of equal length has of its own, which is nothing."""

    method: ClassVar[str] = "normalised"
    balancer: ClassVar[str] = "normalised"


@dataclass(frozen=True)
class NormalisedConfig(NormalisedSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with task gradients of equal length, summed."""


@dataclass(frozen=True)
class NormalisedSACConfig(NormalisedSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with task gradients of equal length, summed."""


PRESETS = presets(NormalisedConfig)
