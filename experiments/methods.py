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
        summary: what the method does, in one line.
        evaluate_config: the address of the settings of an evaluation. Default: those that most methods share.
        sac_config: the address of the settings of a training with `--algorithm sac`. Default: the method has none.
    """

    name: str
    config: str
    summary: str
    evaluate_config: str = "experiments.training.config:EvaluateConfig"
    sac_config: str | None = None

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
        with main_guard(prog):
            for flag in (word.partition("=")[0].replace("_", "-") for word in argv):
                if flag in flags_of(other) and flag not in flags_of(kind):
                    raise UsageError(f"argument {flag} is for --algorithm {'dqn' if wants_sac else 'sac'} only")
        return kind, None if wants_sac else self.presets


def _method(name: str, prefix: str, summary: str, evaluate_config: str = Method.evaluate_config) -> Method:
    """A method that balances the gradients of either algorithm."""
    module = f"experiments.{name}.config"
    return Method(name, f"{module}:{prefix}Config", summary, evaluate_config, f"{module}:{prefix}SACConfig")


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _method("aim", "AIM", "conflicting gradients are removed by learned thresholds"),
        Method(
            "brc",
            "experiments.brc.config:BRCConfig",
            "a wide residual network with categorical values",
            "experiments.training.config:DQNEvaluateConfig",
        ),
        _method("gradnorm", "GradNorm", "learned weights even out training rates"),
        _method(
            "gradnorm_pcgrad",
            "GradNormPCGrad",
            "GradNorm's weights for the lengths of the gradients, PCGrad's projections for their directions",
        ),
        Method(
            "independent_dqn",
            "experiments.independent_dqn.config:IndependentDQNConfig",
            "one network per task, nothing shared: the baseline that sharing has to beat",
            "experiments.independent_dqn.config:IndependentDQNEvaluateConfig",
        ),
        _method(
            "memory",
            "Memory",
            "the sum of gradients of equal length turns towards past sums: RGB without conflict handling",
        ),
        _method("normalised", "Normalised", "gradients of equal length are summed: a control"),
        _method("pcgrad", "PCGrad", "conflicting gradients are projected"),
        _method("random", "Random", "gradients are weighted by random numbers at every update: a control"),
        _method("rgb", "RGB", "gradients are rotated towards a remembered consensus"),
        Method(
            "shared_dqn",
            "experiments.shared_dqn.config:SharedDQNConfig",
            "gradients are summed: the baseline",
            sac_config="experiments.shared_dqn.config:SharedSACConfig",
        ),
        _method("static", "Static", "gradients are weighted by fixed numbers: the baseline to tune"),
        _method(
            "torchjd",
            "TorchJD",
            "any aggregator of TorchJD by name",
            "experiments.torchjd.config:TorchJDEvaluateConfig",
        ),
    )
}
