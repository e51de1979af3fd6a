"""Settings of BRC."""

from dataclasses import dataclass
from math import pi
from typing import Annotated, Any, ClassVar, Literal

import tyro

from agents.settings import BRCSettings
from experiments.training.algorithms import DQNTrainConfig
from experiments.training.presets import presets
from mtrl.limits import Limits
from mtrl.rl.settings import MEMORY_ANGLE, ReplaySettings


@dataclass(frozen=True)
class BRCConfig(BRCSettings, DQNTrainConfig):
    """Train BRC (Nauman et al. 2025): residual network, categorical values, normalised returns, AdamW."""

    method: ClassVar[str] = "brc"
    agent: ClassVar[str] = "BRC"
    agent_settings: ClassVar[type[ReplaySettings]] = BRCSettings

    learning_rate: Annotated[float, Limits(above=0)] = 3e-4
    """Step size of AdamW."""

    # `BRCSettings` leaves it to the balancer, as every agent's settings do; a run writes down what it used.
    memory_angle: Annotated[float, Limits(least=0, most=pi / 2)] = MEMORY_ANGLE
    """Angle in radians by which every update turns towards what past updates had in common; 0 turns none. See
    `mtrl.DirectionMemory`."""

    embedding_dim: int = 32
    """Size of the learned task embedding, which is normalised to length 1 (aware only)."""

    width: int = 128
    """Width of every hidden layer; the paper goes up to 4096."""

    depth: int = 2
    """Residual blocks."""

    num_bins: int = 101
    """Bins of the value distribution."""

    v_max: float = 10.0
    """The bins range over [-v_max, v_max], in normalised returns."""

    # BRC has a network and a loss of its own, so that these are no flags.
    hidden_dims: Annotated[tuple[int, ...], tyro.conf.Fixed, tyro.conf.Suppress] = ()
    heads: Annotated[Literal["shared", "per_task"], tyro.conf.Fixed, tyro.conf.Suppress] = "shared"
    layer_norm: Annotated[bool, tyro.conf.Fixed, tyro.conf.Suppress] = True
    td_loss: Annotated[Literal["huber", "mse"], tyro.conf.Fixed, tyro.conf.Suppress] = "huber"
    huber_delta: Annotated[float, tyro.conf.Fixed, tyro.conf.Suppress] = 10.0
    reward_scaling: Annotated[Literal["none", "return"], tyro.conf.Fixed, tyro.conf.Suppress] = "none"
    value_normalization: Annotated[Literal["none", "popart"], tyro.conf.Fixed, tyro.conf.Suppress] = "none"

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Arguments of `agents.BroNet`."""
        return {name: getattr(self, name) for name in ("embedding_dim", "width", "depth", "num_bins", "v_max")}


# The notes prescribe the network and the step size of another agent. Their episodes and exploration apply here.
_OWN = ("learning_rate", "embedding_dim", "hidden_dims", "layer_norm", "huber_delta")
PRESETS = presets(BRCConfig, without=_OWN)
