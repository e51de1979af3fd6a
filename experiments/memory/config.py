"""Settings of normalised gradients with memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Annotated, Any, ClassVar

from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import MethodSettings
from experiments.training.presets import presets
from experiments.training.search import Between, Space
from mtrl.limits import Limits


@dataclass(frozen=True)
class MemorySettings(MethodSettings):
    """What RGB's memory without its handling of conflict has of its own."""

    method: ClassVar[str] = "memory"
    balancer: ClassVar[str] = "memory"
    own_search_space: ClassVar[Mapping[str, Space]] = {"angle": Between(0.0, 1.4), "decay": Between(0.5, 0.99)}

    memory_angle: Annotated[float, Limits(least=0, most=pi / 2)] = 0.0
    """Angle in radians by which every update turns once more towards what past updates had in common. The default
    turns none, because the method has a memory of its own."""

    angle: Annotated[float, Limits(least=0, most=pi / 2)] = 0.8
    """Angle in radians by which the sum of the gradients turns towards what past sums had in common."""

    decay: Annotated[float, Limits(least=0, below=1)] = 0.9
    """Share of that memory that is kept at every update."""

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.MemoryBalancer`."""
        return {"angle": self.angle, "decay": self.decay}


@dataclass(frozen=True)
class MemoryConfig(MemorySettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with RGB's memory but without its handling of conflict."""


@dataclass(frozen=True)
class MemorySACConfig(MemorySettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with RGB's memory but without its handling of conflict."""


PRESETS = presets(MemoryConfig)
