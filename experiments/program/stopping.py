"""How a training run ends before its time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from experiments.program.flags import UsageError


class StoppedError(Exception):
    """A run ended before its time, with its files in order; the message is one line that says why and what to do.

    Attributes:
        status: the program's exit status.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def disk_errors(folder: Path, kind: type[UsageError | StoppedError]) -> Iterator[None]:
    """Raise as `kind`, in one line, what the operating system has against writing to `folder`."""
    try:
        yield
    except BrokenPipeError:  # not a disk, but a terminal that is gone
        raise
    except OSError as error:
        place = folder if error.filename is None else error.filename
        raise kind(f"cannot write to '{place}': {error.strerror or error}") from error


class StopSignal(BaseException):
    """SIGINT or SIGTERM arrived. Not an `Exception`, as code that handles errors has no business with it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class StopSignals:
    """Notes the first SIGINT or SIGTERM inside a `with` block; a second one acts as it does without the block.

    Signals arrive in the main thread; in another one the block changes nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    @property
    def received(self) -> bool:
        """Whether a signal has arrived."""
        return self._received is not None

    def answer(self) -> None:
        """Raise `StopSignal` if a signal has arrived."""
        if self._received is not None:
            raise StopSignal(self._received)

    def answer_at_once(self) -> None:
        """Raise `StopSignal` if a signal has arrived, and from now on wherever one finds the program."""
        self._at_once = True
        self.answer()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self.__exit__()
        if self._at_once:
            self.answer()
