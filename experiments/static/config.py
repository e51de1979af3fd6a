"""Settings of static weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.program.command import resolve
from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import MethodSettings
from experiments.training.presets import presets
from experiments.training.search import Space, Weights


@dataclass(frozen=True)
class StaticSettings(MethodSettings):
    """What static weights has of its own."""

    method: ClassVar[str] = "static"
    balancer: ClassVar[str] = "static"

    weights: tuple[float, ...] | None = None
    """Weight of each task, in the order of the tasks; weights that sum to the number of tasks keep the scale of the
    sum. Default: 1 for every task, as shared_dqn has them."""

    @property
    def search_space(self) -> Mapping[str, Space]:
        """The weights besides what is searched for every method."""
        tasks = resolve("experiments.program.tasks:get_tasks")(self.tasks)
        return {**super().search_space, "weights": Weights(len(tasks))}

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.StaticWeights`."""
        return {"weights": self.weights}


@dataclass(frozen=True)
class StaticConfig(StaticSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with fixed task weights."""


@dataclass(frozen=True)
class StaticSACConfig(StaticSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with fixed task weights."""


PRESETS = presets(StaticConfig)
