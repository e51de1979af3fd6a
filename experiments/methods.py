"""The list of methods that train an agent.

To add a method, add its package, with `config.py`, `train.py` and `evaluate.py` as the packages of the others have
them, and one entry to the list below. Its programs, sweeps, benchmarks and tests then know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.program.command import resolve, run

if TYPE_CHECKING:
    from experiments.training.config import EvaluateConfig, TrainConfig


@dataclass(frozen=True)
class Method:
    """A way to train an agent on several tasks.

    Attributes:
        name: the name of the method and of its package in `experiments`.
        config: the address of the settings of a training.
        summary: what the method does, in one line.
        evaluate_config: the address of the settings of an evaluation. Default: those that most methods share.
    """

    name: str
    config: str
    summary: str
    evaluate_config: str = "experiments.training.config:EvaluateConfig"

    @property
    def config_type(self) -> type[TrainConfig]:
        """The settings of a training: the flags of the method's `train` program."""
        kind: type[TrainConfig] = resolve(self.config)
        return kind

    @property
    def evaluate_config_type(self) -> type[EvaluateConfig]:
        """The settings of an evaluation: the flags of the method's `evaluate` program."""
        kind: type[EvaluateConfig] = resolve(self.evaluate_config)
        return kind

    @property
    def presets(self) -> Mapping[str, TrainConfig]:
        """The settings that `--preset` chooses from: `PRESETS` beside the settings."""
        presets: Mapping[str, TrainConfig] = resolve(f"{self.config.partition(':')[0]}:PRESETS")
        return presets

    def train(self, argv: Sequence[str] | None = None) -> int:
        """Run `python -m experiments.<name>.train`, and return its exit status."""
        prog = f"experiments.{self.name}.train"
        return run("experiments.training.runner:train", self.config_type, argv, prog=prog, presets=self.presets)

    def evaluate(self, argv: Sequence[str] | None = None) -> int:
        """Run `python -m experiments.<name>.evaluate`, and return its exit status."""
        target = "experiments.training.evaluate_run:evaluate_run"
        prog = f"experiments.{self.name}.evaluate"
        return run(target, self.evaluate_config_type, argv, prog=prog, arguments=[self.name])


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("aim", "experiments.aim.config:AIMConfig", "conflicting gradients are removed by learned thresholds"),
        Method("brc", "experiments.brc.config:BRCConfig", "a wide residual network with categorical values"),
        Method("gradnorm", "experiments.gradnorm.config:GradNormConfig", "learned weights even out training rates"),
        Method(
            "gradnorm_pcgrad",
            "experiments.gradnorm_pcgrad.config:GradNormPCGradConfig",
            "GradNorm's weights for the lengths of the gradients, PCGrad's projections for their directions",
        ),
        Method(
            "independent_dqn",
            "experiments.independent_dqn.config:IndependentDQNConfig",
            "one network per task, nothing shared: the baseline that sharing has to beat",
            "experiments.independent_dqn.config:IndependentDQNEvaluateConfig",
        ),
        Method(
            "memory",
            "experiments.memory.config:MemoryConfig",
            "the sum of gradients of equal length turns towards past sums: RGB without conflict handling",
        ),
        Method(
            "normalised",
            "experiments.normalised.config:NormalisedConfig",
            "gradients of equal length are summed: a control",
        ),
        Method("pcgrad", "experiments.pcgrad.config:PCGradConfig", "conflicting gradients are projected"),
        Method(
            "random",
            "experiments.random.config:RandomConfig",
            "gradients are weighted by random numbers at every update: a control",
        ),
        Method("rgb", "experiments.rgb.config:RGBConfig", "gradients are rotated towards a remembered consensus"),
        Method("shared_dqn", "experiments.shared_dqn.config:SharedDQNConfig", "gradients are summed: the baseline"),
        Method(
            "static",
            "experiments.static.config:StaticConfig",
            "gradients are weighted by fixed numbers: the baseline to tune",
        ),
        Method(
            "torchjd",
            "experiments.torchjd.config:TorchJDConfig",
            "any aggregator of TorchJD by name",
            "experiments.torchjd.config:TorchJDEvaluateConfig",
        ),
    )
}
