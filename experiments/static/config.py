"""Settings of static weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.training.config import TrainConfig, presets


@dataclass(frozen=True)
class StaticConfig(TrainConfig):
    """Train one shared Q-network on all tasks with fixed task weights."""

    method: ClassVar[str] = "static"
    balancer: ClassVar[str] = "static"

    weights: tuple[float, ...] | None = None
    """Weight of each task, in the order of the tasks; weights that sum to the number of tasks keep the scale of the
    sum. Default: 1 for every task, as shared_dqn has them."""

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.StaticWeights`."""
        return {"weights": self.weights}


PRESETS = presets(StaticConfig)
