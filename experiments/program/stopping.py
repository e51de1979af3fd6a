"""How a training ends before its time: by a signal, or because a disk is full.

What it leaves in its folder then is decided in `experiments.program.run_folder`.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from experiments.program.flags import UsageError
from mtrl.files import one_line


class StoppedError(Exception):
    """A run ended before its time, and its files are in order. The message is one line: why, and how to go on.

    Attributes:
        status: the program's exit status.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def disk_errors(folder: Path, kind: type[UsageError | StoppedError]) -> Iterator[None]:
    """Turn an error of the operating system into a `kind` with a message of one line.

    Args:
        folder: the folder that is written to, for errors that name no file.
        kind: the exception to raise.
    """
    try:
        yield
    except BrokenPipeError:  # this is no disk but a terminal that has been closed
        raise
    except OSError as error:
        place = folder if error.filename is None else error.filename
        raise kind(f"cannot write to '{place}': {error.strerror or error}") from error


def memory_problem(error: BaseException) -> str | None:
    """What to say of an error that means that memory ran out; None for any other error.

    NumPy and Python raise MemoryError; PyTorch raises RuntimeError, with pages of detail.
    """
    text = one_line(error, longest=0)
    if not isinstance(error, MemoryError) and not (
        isinstance(error, RuntimeError) and any(words in text for words in ("allocate memory", "out of memory"))
    ):
        return None
    wanted = re.search(r"allocate ([\d.,]+ ?[a-zA-Z]+)", text)
    return f"out of memory: {wanted[1]} more were asked for" if wanted else "out of memory"


class StopSignal(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived. This is no `Exception`, so that code that handles errors lets it pass."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


HANG_UP = getattr(signal, "SIGHUP", None)  # the terminal is gone; Windows has no such signal
SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, HANG_UP)))


class StopSignals:
    """Notes the first SIGINT, SIGTERM or SIGHUP inside a `with` block. A second one acts as it does without the block.

    Python delivers signals to the main thread only, so the block changes nothing in any other thread.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN or number != HANG_UP:  # as under nohup
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def only_note(self) -> None:
        """From now on only note that a signal has arrived, for the end of a run that nothing can undo."""
        self._at_once = False

    def let_go(self) -> None:
        """Answer signals as outside the block from now on."""
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
        """Raise `StopSignal` if a signal has arrived, and from now on as soon as one arrives."""
        self._at_once = True
        self.answer()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self.let_go()
        if self._at_once:
            self.answer()
