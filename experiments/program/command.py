"""How every program runs: a dataclass is its command line, and an address says which function does the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from experiments.program.flags import UsageError, main_guard, parse
from experiments.program.stopping import StoppedError, memory_problem
from experiments.program.terminal import console, forgiving_output

Config = TypeVar("Config")


def run(
    target: str | Callable[..., object],
    config_type: type[Config],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str | None = None,
    presets: Mapping[str, Config] | None = None,
    default: Config | None = None,
    arguments: Sequence[object] = (),
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
        arguments: further positional arguments of `target`, after the configuration.

    Returns:
        0 for a finished run, 1 for a run that something beyond the command line ended, such as a failing environment or
        a full disk, and 128 + n for a run that signal n ended; or the status that `target` returned.

    Raises:
        SystemExit: with status 2 after one line on stderr for what the user got wrong; see `main_guard`.
    """
    with forgiving_output():
        with main_guard(prog):
            check_own_packages()
        config = parse(config_type, argv, prog=prog, description=description, presets=presets, default=default)
        if isinstance(target, str) and console(sys.stderr).is_terminal:
            print(f"{prog}: loading ...", file=sys.stderr, flush=True)  # PyTorch takes some seconds
        with main_guard(prog):
            main = resolve(target) if isinstance(target, str) else target
            try:
                status = main(config, *arguments)
            except StoppedError as stop:
                print(f"{prog}: {stop}", file=sys.stderr)
                return stop.status
            except (MemoryError, RuntimeError) as error:
                if (problem := memory_problem(error)) is None:
                    raise
                print(f"{prog}: {problem}", file=sys.stderr)
                return 1
            return status if isinstance(status, int) else 0


def check_own_packages() -> None:
    """Check that the packages of this repository are not hidden by packages of the user's with the same names.

    Raises:
        UsageError: one of them is.
    """
    root = Path(__file__).parents[2]
    for name in ("agents", "envs"):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None and root not in Path(spec.origin).resolve().parents:
            raise UsageError(
                f"{spec.origin} hides the package {name!r} of this repository; rename it, or run in another folder"
            )


def resolve(address: str) -> Any:
    """The object at an address such as `"experiments.training.runner:train"`, whose module is imported."""
    module, _, name = address.partition(":")
    return getattr(import_module(module), name)
