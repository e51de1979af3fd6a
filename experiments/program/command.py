"""The two programs that every method has, and how programs end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from experiments.program.flags import run
from experiments.program.stopping import StoppedError
from experiments.training.config import EvaluateConfig, TrainConfig

Config = TypeVar("Config")


def train_command(
    config_type: type[TrainConfig], presets: Mapping[str, TrainConfig], argv: Sequence[str] | None = None
) -> int:
    """`python -m experiments.<method>.train`: parse the flags, train, return the exit status.

    It is 0 for a finished run, 1 for one that something beyond the command line ended, such as a failing environment or
    a full disk, 2 for a command that can't be carried out, and 128 + n for a run that signal n ended.
    """
    prog = f"experiments.{config_type.method}.train"

    def main(config: TrainConfig) -> None:
        from experiments.training.runner import train  # noqa: PLC0415 - torch loads only when there is something to train

        train(config)

    return stoppable(main, config_type, argv, prog=prog, presets=presets)


def evaluate_command(
    method: str, argv: Sequence[str] | None = None, config_type: type[EvaluateConfig] = EvaluateConfig
) -> int:
    """`python -m experiments.<method>.evaluate`: parse the flags, play, print, return the exit status."""

    def main(config: EvaluateConfig) -> None:
        from experiments.training.evaluation import evaluate_run  # noqa: PLC0415 - as above

        evaluate_run(method, config)

    prog = f"experiments.{method}.evaluate"
    return run(main, config_type, argv, prog=prog)


def stoppable(
    main: Callable[[Config], object],
    config_type: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    presets: Mapping[str, Config] | None = None,
) -> int:
    """Parse the flags, call `main`, return the exit status, which is also that of a `StoppedError`; see `parse`."""

    def guarded(config: Config) -> int:
        try:
            main(config)
        except StoppedError as stop:
            print(f"{prog}: {stop}", file=sys.stderr)
            return stop.status
        return 0

    return run(guarded, config_type, argv, prog=prog, presets=presets)
