"""Settings of PCGrad."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import MethodSettings
from experiments.training.presets import presets


@dataclass(frozen=True)
class PCGradSettings(MethodSettings):
    """What PCGrad has of its own."""

    method: ClassVar[str] = "pcgrad"
    balancer: ClassVar[str] = "pcgrad"

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.PCGrad`. The seed decides the random order of its projections."""
        return {"seed": self.seed}


@dataclass(frozen=True)
class PCGradConfig(PCGradSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with PCGrad (Yu et al. 2020)."""


@dataclass(frozen=True)
class PCGradSACConfig(PCGradSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with PCGrad (Yu et al. 2020)."""


PRESETS = presets(PCGradConfig)
