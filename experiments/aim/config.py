"""Settings of AIM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import MethodSettings
from experiments.training.presets import presets
from experiments.training.search import Between, Space


@dataclass(frozen=True)
class AIMSettings(MethodSettings):
    """What AIM has of its own."""

    method: ClassVar[str] = "aim"
    balancer: ClassVar[str] = "aim"
    own_search_space: ClassVar[Mapping[str, Space]] = {
        "policy_lr": Between(1e-4, 0.1, log=True),
        "magnitude_weight": Between(0.01, 1.0, log=True),
        "progress_weight": Between(0.01, 1.0, log=True),
    }

    thresholds: Literal["matrix", "scalar"] = "matrix"
    """`matrix`: one learned threshold tau per ordered pair of tasks; `scalar`: one threshold for all pairs."""

    gate: bool = False
    """Learn a gate for each task besides, which can shut out its whole gradient. Its effect on returns in
    reinforcement learning is unmeasured."""

    k: float = 10.0
    """Steepness of the intervention around its threshold."""

    policy_lr: float = 1e-3
    """Learning rate of the thresholds."""

    guidance: Literal["lookahead", "none"] = "lookahead"
    """`lookahead`: the thresholds learn from the loss on held-out transitions one step ahead; `none`: they do not."""

    guidance_loss: Literal["sum", "log_sum", "unit_norm"] = "sum"
    """How one loss is made of the tasks' held-out losses: `sum`; `log_sum`, the sum of their logarithms, which needs
    positive losses; or `unit_norm`, the sum of their gradients at length 1. The last two do not depend on the scale of
    a task's rewards. Their effect on returns is unmeasured."""

    policy_interval: int = 10
    """Updates between steps of the thresholds. At 1, every update costs one more backward pass."""

    guidance_weight: float = 1.0
    """Weight of the held-out loss in the loss of the thresholds."""

    magnitude_weight: float = 0.1
    """Weight, in the loss of the thresholds, of keeping the total length of the gradients."""

    progress_weight: float = 0.1
    """Weight, in the loss of the thresholds, of progress along the gradient of every task."""

    @property
    def for_negative_losses(self) -> str | None:
        """See `MethodSettings.for_negative_losses`."""
        takes_logarithms = self.guidance == "lookahead" and self.guidance_loss == "log_sum"
        flags = ["--progress-weight 0"] * (self.progress_weight > 0)
        flags += ["--guidance-loss unit_norm"] * takes_logarithms
        return " ".join(flags) or None

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.AIM`."""
        names = ("gate", "k", "guidance", "guidance_loss", "policy_interval", "guidance_weight")
        own = {name: getattr(self, name) for name in (*names, "magnitude_weight", "progress_weight")}
        return own | {"tau": self.thresholds, "lr": self.policy_lr}


@dataclass(frozen=True)
class AIMConfig(AIMSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with AIM, adaptive intervention (Minot and Schneider 2025)."""


@dataclass(frozen=True)
class AIMSACConfig(AIMSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with AIM (Minot and Schneider 2025)."""


PRESETS = presets(AIMConfig)
