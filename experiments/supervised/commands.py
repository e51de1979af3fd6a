"""How both programs run and end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from experiments.cli import run
from experiments.stopping import StoppedError

Config = TypeVar("Config")


def stoppable(
    main: Callable[[Config], object], config_type: type[Config], argv: Sequence[str] | None, *, prog: str
) -> int:
    """Parse the flags, call `main`, return the exit status: 0, 1, 2 or 128 + n, as for the reinforcement learning."""

    def guarded(config: Config) -> int:
        try:
            main(config)
        except StoppedError as stop:
            print(f"{prog}: {stop}", file=sys.stderr)
            return stop.status
        return 0

    return run(guarded, config_type, argv, prog=prog)
