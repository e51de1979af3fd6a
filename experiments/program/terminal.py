"""What programs show in the terminal: how wide it is, progress bars, tables, and what happens when it is gone."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

NARROWEST = 60
"""The columns of a terminal below which live displays and tables become plain lines."""


def console(file: TextIO | None = None) -> Console:
    """A console that shows every text as it is: nothing in a name is markup.

    `is_terminal` of the console says whether live displays have room. It is False where the output goes to a file or to
    a terminal of fewer than 60 columns.

    Args:
        file: the stream to write to. Default: the standard output of the moment.
    """
    plain: dict[str, Any] = {"file": file, "markup": False, "emoji": False, "highlight": False}
    found = Console(**plain)
    return Console(**plain, force_terminal=False) if found.is_terminal and found.width < NARROWEST else found


def progress(quiet: bool, description: str = "{task.description}", **options: Any) -> Progress:
    """A live bar that shows what is done, what is left to do, and the time left; nothing if `quiet`.

    Args:
        quiet: whether to show nothing.
        description: the text before the bar. Default: the description of each task of the bar.
        **options: further arguments of rich's `Progress`. Default: it goes to standard output.
    """
    columns = TextColumn(description, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    options.setdefault("console", console())
    return Progress(*columns, disable=quiet, **options)


def show_table(table: Table, on: Console) -> None:
    """Print a table; on a terminal of fewer than 60 columns, a line for each row, such as `Windy: return 231.0`."""
    if on.width >= NARROWEST:
        on.print(table)
        return
    if table.title is not None:
        on.print(str(table.title), soft_wrap=True)
    names = [str(column.header) for column in table.columns]
    for row in zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True):
        parts = ", ".join(f"{name} {cell}".strip() for name, cell in zip(names[1:], row[1:], strict=True) if cell)
        on.print(f"{row[0]}: {parts}", soft_wrap=True)


@contextmanager
def forgiving_output() -> Iterator[None]:
    """Inside this context, output that cannot be written is lost, and the program goes on.

    A terminal may be closed, a pipe's reader may end, and the disk under a log may be full. What is shown never ends
    what is computed. Characters that the terminal cannot show are written as escapes.
    """
    for descriptor in range(3):  # if one is closed, the next file that is opened would take its place
        with suppress(OSError):
            try:
                os.fstat(descriptor)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
    with redirect_stdout(_forgiving(sys.stdout)), redirect_stderr(_forgiving(sys.stderr)):
        yield


def _forgiving(stream: TextIO | None) -> TextIO:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return cast(TextIO, _Forgiving(stream))


class _Forgiving:
    """A text stream whose `write` and `flush` raise no errors of the system."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._is_lost = stream is None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self._is_lost:
            with self._losing():
                self._stream.write(text)  # type: ignore[union-attr] # it is not lost
        return len(text)

    def flush(self) -> None:
        if not self._is_lost:
            with self._losing():
                self._stream.flush()  # type: ignore[union-attr] # it is not lost

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._is_lost = True
            with suppress(OSError, ValueError):  # Python flushes what is left once more when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        except ValueError:
            if not self.closed:
                raise
            self._is_lost = True
