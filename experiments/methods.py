"""The list of methods that train an agent.

To add a method, add its package, with `config.py`, `train.py` and `evaluate.py` as the packages of the others have
them, and one entry to the list below. Its programs, sweeps, benchmarks and tests then know it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.program.command import resolve, run
from experiments.program.flags import UsageError, flags_of, main_guard, parse, value_of

if TYPE_CHECKING:
    from experiments.training.algorithms import DQNTrainConfig, SACTrainConfig
    from experiments.training.config import EvaluateConfig, TrainConfig


@dataclass(frozen=True)
class Method:
    """A way to train an agent on several tasks.

    Attributes:
        name: the name of the method and of its package in `experiments`.
        config: the address of the settings of a training.
        sac_config: the address of those with `--algorithm sac`; None if the method has only Q-learning.
        summary: what the method does, in one line.
        evaluate_config: the address of the settings of an evaluation. Default: those that most methods share.
    """

    name: str
    config: str
    sac_config: str | None
    summary: str
    evaluate_config: str = "experiments.training.config:EvaluateConfig"

    @property
    def config_type(self) -> type[DQNTrainConfig]:
        """The settings of a training: the flags of the method's `train` program."""
        kind: type[DQNTrainConfig] = resolve(self.config)
        return kind

    @property
    def evaluate_config_type(self) -> type[EvaluateConfig]:
        """The settings of an evaluation: the flags of the method's `evaluate` program."""
        kind: type[EvaluateConfig] = resolve(self.evaluate_config)
        return kind

    @property
    def presets(self) -> Mapping[str, DQNTrainConfig]:
        """The settings that `--preset` chooses from: `PRESETS` beside the settings."""
        presets: Mapping[str, DQNTrainConfig] = resolve(f"{self.config.partition(':')[0]}:PRESETS")
        return presets

    @property
    def sac_config_type(self) -> type[SACTrainConfig] | None:
        """The settings of a training with `--algorithm sac`; None if the method has none."""
        kind: type[SACTrainConfig] | None = None if self.sac_config is None else resolve(self.sac_config)
        return kind

    def parse(self, argv: Sequence[str], prog: str) -> TrainConfig:
        """The settings that the words of a command line stand for.

        Raises:
            SystemExit: see `experiments.program.flags.parse`.
        """
        kind, presets = self._chosen(argv, prog)
        return parse(kind, argv, prog=prog, presets=presets)

    def train(self, argv: Sequence[str] | None = None) -> int:
        """Run `python -m experiments.<name>.train`, and return its exit status."""
        argv, prog = sys.argv[1:] if argv is None else argv, f"experiments.{self.name}.train"
        kind, presets = self._chosen(argv, prog)
        return run("experiments.training.runner:train", kind, argv, prog=prog, presets=presets)

    def evaluate(self, argv: Sequence[str] | None = None) -> int:
        """Run `python -m experiments.<name>.evaluate`, and return its exit status."""
        target = "experiments.training.evaluate_run:evaluate_run"
        prog = f"experiments.{self.name}.evaluate"
        return run(target, self.evaluate_config_type, argv, prog=prog, arguments=[self.name])

    def _chosen(self, argv: Sequence[str], prog: str) -> tuple[type[TrainConfig], Mapping[str, TrainConfig] | None]:
        """The settings and the presets of the algorithm that `--algorithm` names.

        Raises:
            SystemExit: a flag is one of the other algorithm's; a line on stderr says so.
        """
        if (sac := self.sac_config_type) is None:
            return self.config_type, self.presets
        wants_sac = value_of("--algorithm", argv) == "sac"
        kind, other = (sac, self.config_type) if wants_sac else (self.config_type, sac)
        of_other = {*flags_of(other)} - {*flags_of(kind)}
        with main_guard(prog):
            for flag in (word.partition("=")[0].replace("_", "-") for word in argv):
                if flag in of_other:
                    raise UsageError(f"argument {flag} is for --algorithm {'dqn' if wants_sac else 'sac'} only")
        return kind, None if wants_sac else self.presets


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "aim",
            "experiments.aim.config:AIMConfig",
            "experiments.aim.config:AIMSACConfig",
            "conflicting gradients are removed by learned thresholds",
        ),
        Method(
            "brc",
            "experiments.brc.config:BRCConfig",
            None,
            "a wide residual network with categorical values",
            "experiments.training.config:DQNEvaluateConfig",
        ),
        Method(
            "gradnorm",
            "experiments.gradnorm.config:GradNormConfig",
            "experiments.gradnorm.config:GradNormSACConfig",
            "learned weights even out training rates",
        ),
        Method(
            "gradnorm_pcgrad",
            "experiments.gradnorm_pcgrad.config:GradNormPCGradConfig",
            "experiments.gradnorm_pcgrad.config:GradNormPCGradSACConfig",
            "GradNorm's weights for the lengths of the gradients, PCGrad's projections for their directions",
        ),
        Method(
            "independent_dqn",
            "experiments.independent_dqn.config:IndependentDQNConfig",
            None,
            "one network per task, nothing shared: the baseline that sharing has to beat",
            "experiments.independent_dqn.config:IndependentDQNEvaluateConfig",
        ),
        Method(
            "memory",
            "experiments.memory.config:MemoryConfig",
            "experiments.memory.config:MemorySACConfig",
            "the sum of gradients of equal length turns towards past sums: RGB without conflict handling",
        ),
        Method(
            "normalised",
            "experiments.normalised.config:NormalisedConfig",
            "experiments.normalised.config:NormalisedSACConfig",
            "gradients of equal length are summed: a control",
        ),
        Method(
            "pcgrad",
            "experiments.pcgrad.config:PCGradConfig",
            "experiments.pcgrad.config:PCGradSACConfig",
            "conflicting gradients are projected",
        ),
        Method(
            "random",
            "experiments.random.config:RandomConfig",
            "experiments.random.config:RandomSACConfig",
            "gradients are weighted by random numbers at every update: a control",
        ),
        Method(
            "rgb",
            "experiments.rgb.config:RGBConfig",
            "experiments.rgb.config:RGBSACConfig",
            "gradients are rotated towards a remembered consensus",
        ),
        Method(
            "shared_dqn",
            "experiments.shared_dqn.config:SharedDQNConfig",
            "experiments.shared_dqn.config:SharedSACConfig",
            "gradients are summed: the baseline",
        ),
        Method(
            "static",
            "experiments.static.config:StaticConfig",
            "experiments.static.config:StaticSACConfig",
            "gradients are weighted by fixed numbers: the baseline to tune",
        ),
        Method(
            "torchjd",
            "experiments.torchjd.config:TorchJDConfig",
            "experiments.torchjd.config:TorchJDSACConfig",
            "any aggregator of TorchJD by name",
            "experiments.torchjd.config:TorchJDEvaluateConfig",
        ),
    )
}
