"""The two programs that every method has, and how programs end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

from experiments.program.flags import main_guard, parse
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

    return run(main, config_type, argv, prog=prog, presets=presets)


def evaluate_command(
    method: str, argv: Sequence[str] | None = None, config_type: type[EvaluateConfig] = EvaluateConfig
) -> int:
    """`python -m experiments.<method>.evaluate`: parse the flags, play, print, return the exit status."""

    def main(config: EvaluateConfig) -> None:
        from experiments.training.evaluation import evaluate_run  # noqa: PLC0415 - as above

        evaluate_run(method, config)

    prog = f"experiments.{method}.evaluate"
    return run(main, config_type, argv, prog=prog)


def run(
    target: str | Callable[[Config], object],
    config_type: type[Config],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str | None = None,
    presets: Mapping[str, Config] | None = None,
    default: Config | None = None,
) -> int:
    """Parse the command line, call `target` with the configuration, and return the program's exit status.

    Args:
        target: a function of the configuration, or the address of one, such as `"experiments.training.runner:train"`.
            An address is imported after the command line has been parsed, so that `--help` does not load PyTorch.
            The function may return an exit status; anything else that it returns counts as status 0.
        config_type: a dataclass whose fields are the flags.
        argv: the words after the program's name. Default: those of this process.
        prog: the program's name in messages.
        description: the first paragraph of `--help`. Default: the docstring of `config_type`.
        presets: configurations that `--preset` chooses from.
        default: the source of every default without `--preset`. Default: the fields' own defaults.

    Returns:
        0, or the status that `target` returned, or that of a `StoppedError`, whose message is printed.

    Raises:
        SystemExit: with status 2 after one line on stderr for what the user got wrong; see `main_guard`.
    """
    config = parse(config_type, argv, prog=prog, description=description, presets=presets, default=default)
    with main_guard(prog):
        main = resolve(target) if isinstance(target, str) else target
        try:
            status = main(config)
        except StoppedError as stop:
            print(f"{prog}: {stop}", file=sys.stderr)
            return stop.status
        return status if isinstance(status, int) else 0


def resolve(address: str) -> Callable[[Any], object]:
    """The function at an address such as `"experiments.training.runner:train"`."""
    module, _, name = address.partition(":")
    function: Callable[[Any], object] = getattr(import_module(module), name)
    return function
