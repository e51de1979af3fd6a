"""Settings of TorchJD's aggregators."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.program.balancer_options import options_from_words
from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
from experiments.training.config import EvaluateConfig, MethodSettings
from experiments.training.presets import presets


@dataclass(frozen=True)
class TorchJDSettings(MethodSettings):
    """What TorchJD's aggregators has of its own."""

    method: ClassVar[str] = "torchjd"

    aggregator: str = "UPGrad"
    """The class in TorchJD: UPGrad, CAGrad, MGDA, NashMTL, IMTLG, AlignedMTL, ConFIG, FairGrad, ..."""

    aggregator_args: tuple[str, ...] = ()
    """Arguments of the aggregator as name=value, for example `c=0.4` for CAGrad. Where TorchJD asks for one, the
    default is that of the method's paper or authors: c=0.5 for CAGrad, alpha=2 for FairGrad, gamma=0.001 for
    MoDoWeighting; and n_byzantine=1 for Krum and trim_number=1 for TrimmedMean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.balancer_kwargs  # raises an error if an argument is malformed

    @property
    def method_name(self) -> str:
        """`torchjd_<aggregator>`."""
        return method_name(self.aggregator)

    @property
    def balancer_name(self) -> str:
        """`torchjd:<aggregator>`."""
        return f"torchjd:{self.aggregator}"

    @property
    def balancer_kwargs(self) -> dict[str, Any]:
        """The arguments of the aggregator, and a seed for aggregators that draw random numbers."""
        return {"seed": self.seed, **options_from_words(self.aggregator_args, "aggregator argument")}


@dataclass(frozen=True)
class TorchJDConfig(TorchJDSettings, DQNTrainConfig):
    """Train one shared Q-network on all tasks with an aggregator of TorchJD (extra `torchjd`)."""


@dataclass(frozen=True)
class TorchJDSACConfig(TorchJDSettings, SACTrainConfig):
    """Train one shared actor and its critics on all tasks with an aggregator of TorchJD (extra `torchjd`)."""


@dataclass(frozen=True)
class TorchJDEvaluateConfig(EvaluateConfig):
    """Play an agent trained with a TorchJD aggregator and print its returns per task."""

    aggregator: str = "UPGrad"
    """The aggregator that the run was trained with."""

    def method_name(self, method: str) -> str:
        """`torchjd_<aggregator>`."""
        return method_name(self.aggregator)

    @property
    def train_flags(self) -> str:
        """The flags with which `train` makes this run."""
        return f"--aggregator {self.aggregator} {super().train_flags}"


def method_name(aggregator: str) -> str:
    """The aggregator's name in the results."""
    return f"torchjd_{aggregator.lower()}"


PRESETS = presets(TorchJDConfig)
