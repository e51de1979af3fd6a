"""Settings of GradNorm with PCGrad."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.config import presets
from experiments.gradnorm.config import GradNormConfig


@dataclass(frozen=True)
class GradNormPCGradConfig(GradNormConfig):
    """Train one shared Q-network on all tasks with GradNorm's weights and PCGrad's directions."""

    method: ClassVar[str] = "gradnorm_pcgrad"
    balancer: ClassVar[str] = "gradnorm_pcgrad"

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.GradNormPCGrad`: the order of projections is random."""
        return super().balancer_kwargs | {"seed": self.seed}


PRESETS = presets(GradNormPCGradConfig)
