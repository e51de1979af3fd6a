"""Settings of GradNorm."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from experiments.training.config import TrainConfig, presets


@dataclass(frozen=True)
class GradNormConfig(TrainConfig):
    """Train one shared Q-network on all tasks with GradNorm's learned task weights (Chen et al. 2018)."""

    method: ClassVar[str] = "gradnorm"
    balancer: ClassVar[str] = "gradnorm"

    alpha: float = 1.5
    """Pull towards tasks that lag behind; 0 equalises gradient norms."""

    weight_lr: float = 0.01
    """Learning rate of the task weights."""

    warmup_steps: int = 100
    """Updates whose mean loss is L(0); weights stay 1 until then."""

    weight_floor: float = 0.1
    """Smallest task weight, where the mean weight is 1."""

    initial_loss_floor: float = 0.01
    """Smallest L(0) of a task, as a share of the mean L(0)."""

    rate_from: Literal["loss", "return"] = "loss"
    """What a task's training rate is measured by."""

    return_range: tuple[float, float] = (-200.0, 250.0)
    """Returns that count as no progress and as done, for --rate-from return."""

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.GradNorm`."""
        return {
            "alpha": self.alpha,
            "lr": self.weight_lr,
            "warmup_steps": self.warmup_steps,
            "weight_floor": self.weight_floor,
            "initial_loss_floor": self.initial_loss_floor,
            "progress": self.rate_from,
            "return_range": self.return_range,
        }


PRESETS = presets(GradNormConfig)
