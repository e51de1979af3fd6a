"""A limit on how long a block of code may take."""

import signal
import threading
import time
from types import FrameType
from typing import Any

from mtrl.limits import check_number

RINGS = 10

__all__ = ["Watchdog", "WatchdogError"]


class WatchdogError(Exception):
    """The block took too long. The message states the time limit."""


class Watchdog:
    """Raises `WatchdogError` inside a `with` block that takes longer than `seconds`.

    The watchdog uses the process's alarm signal. It therefore works in the main thread of systems that have this
    signal, and does nothing elsewhere. Python delivers a signal between two of its own operations, so the watchdog
    cannot interrupt compiled code that never returns to Python. It costs about ten microseconds per block.

    Time in which the whole process is stopped, as by SIGSTOP or a laptop that sleeps, does not count. The alarm
    therefore rings ten times within the limit, and while the process is stopped it rings once at most. In compiled code
    it rings once, too, however long that takes; there the processor time counts.

    Args:
        seconds: the time limit, finite and at least 0. With 0 there is no limit.

    Raises:
        ValueError: `seconds` is negative or not finite.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = check_number("the time limit in seconds", seconds, least=0)
        self._armed = False
        self._rings = 0  # of the alarm, in this block
        self._used = 0.0  # processor time before the block
        self._before: Any = None  # the handler of the signal before the block

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        if self.seconds and main and hasattr(signal, "setitimer"):
            self._armed = True
            self._rings, self._used = 0, time.process_time()
            self._before = signal.signal(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, self.seconds / RINGS, self.seconds / RINGS)

    def __exit__(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        self._rings += 1
        late = self._rings >= RINGS or time.process_time() - self._used >= self.seconds
        if self._armed and late:
            signal.setitimer(signal.ITIMER_REAL, 0)  # so that nothing is raised while this exception is on its way
            raise WatchdogError(f"no answer within {self.seconds:g} s")
