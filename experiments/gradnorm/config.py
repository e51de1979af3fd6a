"""Settings of GradNorm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from experiments.program.command import resolve
from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import MethodSettings
from experiments.training.presets import presets
from experiments.training.search import Between, Space


@dataclass(frozen=True)
class GradNormSettings(MethodSettings):
    """What GradNorm has of its own."""

    method: ClassVar[str] = "gradnorm"
    balancer: ClassVar[str] = "gradnorm"
    own_search_space: ClassVar[Mapping[str, Space]] = {
        "alpha": Between(0.0, 3.0),
        "weight_lr": Between(1e-3, 0.1, log=True),
    }

    alpha: float = 1.5
    """Strength with which tasks that learn more slowly get larger gradients; 0 makes all gradient norms equal."""

    weight_lr: float = 0.01
    """Learning rate of the task weights."""

    warmup_steps: int = 100
    """Updates over which the first loss L(0) of each task is averaged. The weights stay 1 until then."""

    weight_floor: float = 0.1
    """Smallest weight of a task. The mean of the weights is 1."""

    initial_loss_floor: float = 0.01
    """Smallest first loss L(0) of a task, as a share of the mean over the tasks."""

    weight_steps: Literal["log", "plain"] = "log"
    """`log`: steps on the logarithms of the weights, which keep them above 0 whatever the size of the gradients;
    `plain`: steps on the weights, as they are often written down."""

    rate_from: Literal["loss", "return"] = "loss"
    """How the progress of a task is measured: by its `loss`, or by the `return` of its episodes."""

    return_range: tuple[float, float] | None = None
    """The return that counts as no progress, and the return that counts as solved, in all tasks, for --rate-from
    return. Default: in each task, what a random policy reaches and what counts as solved."""

    @property
    def free_settings(self) -> tuple[str, ...]:
        """The names of the settings that may differ when an interrupted run is continued."""
        unused = () if self.rate_from == "return" else ("return_range",)  # earlier releases had another default
        return (*super().free_settings, *unused)

    @property
    def for_negative_losses(self) -> str | None:
        """See `MethodSettings.for_negative_losses`."""
        return "--rate-from return" if self.rate_from == "loss" else None

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.GradNorm`."""
        return {
            "alpha": self.alpha,
            "lr": self.weight_lr,
            "warmup_steps": self.warmup_steps,
            "weight_floor": self.weight_floor,
            "initial_loss_floor": self.initial_loss_floor,
            "weight_steps": self.weight_steps,
            "progress": self.rate_from,
            "return_range": self._return_range(),
        }

    def _return_range(self) -> tuple[float, float] | list[tuple[float, float]] | None:
        if self.rate_from == "loss" or self.return_range is not None:
            return self.return_range
        ranges: list[tuple[float, float]] = resolve("experiments.program.random_policy:return_ranges")(self.tasks)
        return ranges


@dataclass(frozen=True)
class GradNormConfig(GradNormSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with GradNorm's learned task weights (Chen et al. 2018)."""


@dataclass(frozen=True)
class GradNormSACConfig(GradNormSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with GradNorm's learned task weights (Chen et al. 2018)."""


# The first batch as L(0), no floors, and plain steps: the pseudocode of the notes.
LITERAL: dict[str, Any] = {
    "warmup_steps": 1,
    "weight_floor": 0.0,
    "initial_loss_floor": 1e-9,
    "weight_steps": "plain",
}

PRESETS = presets(GradNormConfig, literal=LITERAL)
