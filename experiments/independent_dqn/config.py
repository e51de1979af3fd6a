"""Settings of independent DQN."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import tyro

from experiments.training.algorithms import DQNTrainConfig
from experiments.training.config import DQNEvaluateConfig, Variant
from experiments.training.presets import presets


@dataclass(frozen=True)
class IndependentDQNConfig(DQNTrainConfig):
    """Train one Q-network per task, side by side, on the same data and with as many updates as the shared networks."""

    method: ClassVar[str] = "independent_dqn"
    agent: ClassVar[str] = "IndependentDQN"

    # Each network sees only its own task, so that there are no variants and no embedding.
    variant: Annotated[Variant, tyro.conf.Fixed, tyro.conf.Suppress] = "aware"
    embedding_dim: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = 8
    heads: Annotated[Literal["shared", "per_task"], tyro.conf.Fixed, tyro.conf.Suppress] = "shared"

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Arguments of `agents.IndependentQNetworks`."""
        return {"net_arch": list(self.hidden_dims), "layer_norm": self.layer_norm}


@dataclass(frozen=True)
class IndependentDQNEvaluateConfig(DQNEvaluateConfig):
    """Play the networks of a run greedily, each on its own task, and print their returns."""

    variant: Annotated[Variant, tyro.conf.Fixed, tyro.conf.Suppress] = "aware"

    @property
    def train_flags(self) -> str:
        """The flags with which `train` makes this run."""
        return f"{self.tasks_flag}{self.seed_flags}"


PRESETS = presets(IndependentDQNConfig)
