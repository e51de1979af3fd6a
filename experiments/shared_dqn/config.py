"""Settings of shared DQN."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.config import NOTES, TrainConfig


@dataclass(frozen=True)
class SharedDQNConfig(TrainConfig):
    """Train one shared Q-network on all tasks with equal weights."""

    method: ClassVar[str] = "shared_dqn"
    balancer: ClassVar[str] = "equal"


PRESETS = {"default": SharedDQNConfig(), "notes": SharedDQNConfig(**NOTES)}
