"""Settings of GradNorm with PCGrad."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.gradnorm.config import GradNormConfig
from experiments.training.config import presets


@dataclass(frozen=True)
class GradNormPCGradConfig(GradNormConfig):
    """Train one shared Q-network on all tasks with GradNorm's weights and PCGrad's directions."""

    method: ClassVar[str] = "gradnorm_pcgrad"
    balancer: ClassVar[str] = "gradnorm_pcgrad"

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.GradNormPCGrad`. The seed decides the random order of its projections."""
        return super().balancer_kwargs | {"seed": self.seed}


PRESETS = presets(GradNormPCGradConfig)
