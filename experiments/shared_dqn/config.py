"""Settings of shared DQN."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.training.config import TrainConfig, presets


@dataclass(frozen=True)
class SharedDQNConfig(TrainConfig):
    """Train one shared Q-network on all tasks with equal weights."""

    method: ClassVar[str] = "shared_dqn"


PRESETS = presets(SharedDQNConfig)
