"""Settings of shared DQN."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import MethodSettings
from experiments.training.presets import presets


@dataclass(frozen=True)
class SharedDQNSettings(MethodSettings):
    """What equal weights has of its own, which is nothing."""

    method: ClassVar[str] = "shared_dqn"


@dataclass(frozen=True)
class SharedDQNConfig(SharedDQNSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with equal weights."""


@dataclass(frozen=True)
class SharedSACConfig(SharedDQNSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with equal weights."""


PRESETS = presets(SharedDQNConfig)
