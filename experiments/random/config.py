"""Settings of random weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.training.config import TrainConfig, presets


@dataclass(frozen=True)
class RandomConfig(TrainConfig):
    """Train one shared Q-network on all tasks with random task weights."""

    method: ClassVar[str] = "random"
    balancer: ClassVar[str] = "random"

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.RandomLossWeighting`. The seed decides the weights."""
        return {"seed": self.seed}


PRESETS = presets(RandomConfig)
