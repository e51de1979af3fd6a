"""Settings of random weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import MethodSettings
from experiments.training.presets import presets


@dataclass(frozen=True)
class RandomSettings(MethodSettings):
    """What random weights has of its own."""

    method: ClassVar[str] = "random"
    balancer: ClassVar[str] = "random"

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.RandomLossWeighting`. The seed decides the weights."""
        return {"seed": self.seed}


@dataclass(frozen=True)
class RandomConfig(RandomSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with random task weights."""


@dataclass(frozen=True)
class RandomSACConfig(RandomSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with random task weights."""


PRESETS = presets(RandomConfig)
