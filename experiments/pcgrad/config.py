"""Settings of PCGrad."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.training.config import TrainConfig, presets


@dataclass(frozen=True)
class PCGradConfig(TrainConfig):
    """Train one shared Q-network on all tasks with PCGrad (Yu et al. 2020)."""

    method: ClassVar[str] = "pcgrad"
    balancer: ClassVar[str] = "pcgrad"

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.PCGrad`. The seed decides the random order of its projections."""
        return {"seed": self.seed}


PRESETS = presets(PCGradConfig)
