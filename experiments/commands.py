"""The two programs that every method has."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from experiments.cli import run
from experiments.config import EvaluateConfig, TrainConfig
from experiments.stopping import StoppedError


def train_command(
    config_type: type[TrainConfig], presets: Mapping[str, TrainConfig], argv: Sequence[str] | None = None
) -> int:
    """`python -m experiments.<method>.train`: parse the flags, train, return the exit status.

    It is 0 for a finished run, 1 for one that something beyond the command line ended, such as a failing environment or
    a full disk, 2 for a command that can't be carried out, and 128 + n for a run that signal n ended.
    """
    prog = f"experiments.{config_type.method}.train"

    def main(config: TrainConfig) -> int:
        from experiments.runner import train  # noqa: PLC0415 - torch loads only when there is something to train

        try:
            train(config)
        except StoppedError as stop:
            print(f"{prog}: {stop}", file=sys.stderr)
            return stop.status
        return 0

    return run(main, config_type, argv, prog=prog, presets=presets)


def evaluate_command(
    method: str, argv: Sequence[str] | None = None, config_type: type[EvaluateConfig] = EvaluateConfig
) -> int:
    """`python -m experiments.<method>.evaluate`: parse the flags, play, print, return the exit status."""

    def main(config: EvaluateConfig) -> None:
        from experiments.evaluation import evaluate_run  # noqa: PLC0415 - as above

        evaluate_run(method, config)

    prog = f"experiments.{method}.evaluate"
    return run(main, config_type, argv, prog=prog)
