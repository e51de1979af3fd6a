"""Settings of RGB."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Annotated, Any, ClassVar, Literal

from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import MethodSettings
from experiments.training.presets import presets
from experiments.training.search import Between, Space
from mtrl.limits import Limits


@dataclass(frozen=True)
class RGBSettings(MethodSettings):
    """What RGB has of its own."""

    method: ClassVar[str] = "rgb"
    balancer: ClassVar[str] = "rgb"
    own_search_space: ClassVar[Mapping[str, Space]] = {
        "mu": Between(0.0, 0.99),
        "lambd": Between(0.1, 10.0, log=True),
        "lr_inner": Between(0.02, 2.0, log=True),
    }

    memory_angle: Annotated[float, Limits(least=0, most=pi / 2)] = 0.0
    """Angle in radians by which every update turns once more towards what past updates had in common. The default
    turns none, because RGB has a memory of its own and does worse with a second one."""

    mu: float = 0.9
    """Momentum of the consensus direction."""

    lambd: float = 1.0
    """Weight of staying close to each task's own direction."""

    alpha_steps: int = 3
    """Gradient steps on the rotation angles in each update."""

    lr_inner: float = 0.2
    """Step size of the rotation angles."""

    update_interval: int = 1
    """Updates from one rotation to the next; between them the update is the mean direction."""

    invariant_steps: bool | None = None
    """Whether the steps on the angles keep their size as the number of tasks grows. Default: from four tasks on."""

    magnitude: Literal["unit", "mean_norm", "sum_norm"] = "sum_norm"
    """Length of the update: `unit` is the published length (at most 1); the others follow the gradients."""

    align_threshold: Annotated[float, Limits(above=0, most=1)] = 1.0
    """Cosine with the consensus beyond which a task is not turned. With 0.999, `--magnitude unit` and
    `--invariant-steps False`, RGB is its public original."""

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """Arguments of `mtrl.RGB`."""
        names = ("mu", "lambd", "alpha_steps", "lr_inner", "update_interval", "invariant_steps", "magnitude")
        return {name: getattr(self, name) for name in (*names, "align_threshold")}


@dataclass(frozen=True)
class RGBConfig(RGBSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with RGB, rotation-based gradient balancing."""


@dataclass(frozen=True)
class RGBSACConfig(RGBSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with RGB, rotation-based gradient balancing."""


PRESETS = presets(RGBConfig)
