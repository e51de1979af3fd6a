"""Settings of GradNorm with PCGrad."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.gradnorm.config import GradNormSettings
from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.presets import presets


@dataclass(frozen=True)
class GradNormPCGradSettings(GradNormSettings):
    """What GradNorm's weights and PCGrad's directions has of its own."""

    method: ClassVar[str] = "gradnorm_pcgrad"
    balancer: ClassVar[str] = "gradnorm_pcgrad"

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.GradNormPCGrad`. The seed decides the random order of its projections."""
        return super().balancer_kwargs | {"seed": self.seed}


@dataclass(frozen=True)
class GradNormPCGradConfig(GradNormPCGradSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with GradNorm's weights and PCGrad's directions."""


@dataclass(frozen=True)
class GradNormPCGradSACConfig(GradNormPCGradSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with GradNorm's weights and PCGrad's directions."""


PRESETS = presets(GradNormPCGradConfig)
