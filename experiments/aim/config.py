"""Settings of AIM."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from experiments.training.config import TrainConfig, presets


@dataclass(frozen=True)
class AIMConfig(TrainConfig):
    """Train one shared Q-network on all tasks with AIM, adaptive intervention (Minot and Schneider 2025)."""

    method: ClassVar[str] = "aim"
    balancer: ClassVar[str] = "aim"

    thresholds: Literal["matrix", "scalar"] = "matrix"
    """One learned threshold tau per ordered pair of tasks, or one for all."""

    k: float = 10.0
    """Steepness of the intervention around its threshold."""

    policy_lr: float = 1e-3
    """Learning rate of the thresholds."""

    guidance: Literal["lookahead", "none"] = "lookahead"
    """Whether thresholds are judged by the loss on held-out transitions one step ahead."""

    policy_interval: int = 10
    """Updates per step of the thresholds; 1 costs one more backward pass in every update."""

    guidance_weight: float = 1.0
    """Weight of the held-out loss in the thresholds' loss."""

    magnitude_weight: float = 0.1
    """Weight of keeping the gradients' total length."""

    progress_weight: float = 0.1
    """Weight of progress along every task's own gradient."""

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.AIM`."""
        names = ("k", "guidance", "policy_interval", "guidance_weight", "magnitude_weight", "progress_weight")
        own = {name: getattr(self, name) for name in names}
        return own | {"tau": self.thresholds, "lr": self.policy_lr}


PRESETS = presets(AIMConfig)
