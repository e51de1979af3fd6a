"""Settings of the agents in this package, beside those of `mtrl.rl.settings`. This module needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mtrl.limits import Limits
from mtrl.rl.settings import DQNOptions, DQNSettings, Schedule

__all__ = ["BRCOptions", "BRCSettings"]


@dataclass(frozen=True)
class BRCSettings(DQNSettings):
    """Settings of `BRC`."""

    learning_rate: Annotated[float, Limits(above=0)] | Schedule = 3e-4
    """Step size of AdamW. The default is the paper's."""

    gamma: Annotated[float, Limits(least=0, below=1)] = 0.99
    """Discount per step. It is below 1, because returns are bounded by their horizon 1 / (1 - gamma)."""

    weight_decay: Annotated[float, Limits(least=0)] = 1e-4
    """Weight decay of AdamW. The default is that of the authors' code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward_scaling != "none":
            raise ValueError(
                f"reward_scaling is {self.reward_scaling!r}; it must be 'none' here, because BRC divides the rewards "
                "of each task by its largest return"
            )
        if self.value_normalization != "none":
            raise ValueError(
                f"value_normalization is {self.value_normalization!r}; it must be 'none' here, because the values of "
                "BRC are distributions over fixed bins, into which it scales the rewards"
            )


class BRCOptions(DQNOptions, total=False):
    """The fields of `BRCSettings` as keyword arguments, for type checkers and editors."""

    weight_decay: float
