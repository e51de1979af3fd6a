"""A limit on how long a block of code may take."""

import math
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Watchdog", "WatchdogError"]


class WatchdogError(Exception):
    """The block took too long; the message says how long it had."""


class Watchdog:
    """Raises `WatchdogError` inside a `with` block that takes longer than `seconds`.

    It works by the process's alarm signal: in the main thread, where the system has one; elsewhere it does nothing.
    Python delivers signals between two of its own operations, so code of another language that never returns to
    Python isn't interrupted. It costs about ten microseconds a block.

    Args:
        seconds: the limit, at least 0; 0 for none.

    Raises:
        ValueError: `seconds` is negative or not finite.
    """

    def __init__(self, seconds: float) -> None:
        if not 0 <= seconds < math.inf:
            raise ValueError(f"the time limit is {seconds} seconds; it must be at least 0 and finite")
        self.seconds = seconds
        self._armed = False
        self._before: Any = None  # what answered the signal

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        if self.seconds and main and hasattr(signal, "setitimer"):
            self._armed = True
            self._before = signal.signal(signal.SIGALRM, self._bark)
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def _bark(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            raise WatchdogError(f"no answer within {self.seconds:g} s")
