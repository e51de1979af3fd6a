"""Files that are replaced in one step, regular files of strangers, lines of numbers in JSON, and messages of one line.

This module needs nothing but Python.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["IrregularFileError", "is_number", "one_line", "open_regular", "parse_numbers", "replacing"]


def one_line(text: object, longest: int = 500) -> str:
    """`text` on one line, with control characters escaped so that they cannot act on a terminal.

    Args:
        text: what to show; a stranger may have chosen it.
        longest: characters to keep; what is longer is cut and ends with " ...". 0 keeps all of them. Default 500.
    """
    words = " ".join(str(text).split())
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return message if not longest or len(message) <= longest else f"{message[:longest]} ..."


class IrregularFileError(OSError):
    """A path leads to a symbolic link, a named pipe, a device or a socket instead of a regular file."""


def open_regular(path: str | Path, mode: str = "rb", *, follow_link: bool = False, **kwargs: Any) -> Any:
    """`open`, for regular files only: it neither waits for the writer of a named pipe nor reads a device.

    Args:
        path: the file.
        mode: as for `open`.
        follow_link: whether `path` may be a symbolic link, as a path that a user has typed may be. Default False: in a
            folder that a stranger has made, a link may lead to any file of the user's.
        **kwargs: as for `open`.

    Raises:
        IrregularFileError: the file is not a regular one.
        OSError: the file cannot be opened.
    """

    def opener(name: str, flags: int) -> int:  # Windows has neither flag, and no such files
        flags |= getattr(os, "O_NONBLOCK", 0) | (0 if follow_link else getattr(os, "O_NOFOLLOW", 0))
        try:
            descriptor = os.open(name, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP and not follow_link:
                raise IrregularFileError(errno.ELOOP, "it is a symbolic link", name) from None
            if error.errno == errno.ENXIO:  # a named pipe or a socket that nobody reads
                raise IrregularFileError(errno.ENXIO, "it is not a regular file", name) from None
            raise
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            os.close(descriptor)
            if stat.S_ISDIR(kind):
                raise IsADirectoryError(errno.EISDIR, "it is a folder", name)
            raise IrregularFileError(errno.EINVAL, "it is not a regular file", name)
        return descriptor

    return open(path, mode, opener=opener, **kwargs)


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` when the block ends, and vanishes when the block fails.

    Missing parent folders are created. A killed process leaves its temporary file behind, `.<hexadecimal>.tmp`. The
    next one that replaces the same file removes it.

    Args:
        path: the file to replace.
        previous: where to keep the old file, in the same folder. Default: it is not kept.

    Raises:
        OSError: the file cannot be written. The old one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary file stands in the same folder, because a rename is atomic only within one file system. `tempfile`
    # would make it readable by its owner alone, while `open` follows the umask.
    of_path = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}"
    _remove_abandoned(path.parent.glob(f"{of_path}*.tmp"))
    temporary = path.parent / f"{of_path}{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            _lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # make the rename itself durable; Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove_abandoned(temporaries: Iterable[Path]) -> None:
    """Delete temporary files whose process has ended. A living process holds a lock on its own."""
    for temporary in temporaries:
        with suppress(OSError), open_regular(temporary, "r+b") as file:
            if _lock(file.fileno()):
                temporary.unlink()


def _lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; False if another process holds a lock, or the system has none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def parse_numbers(line: str | bytes) -> dict[str, float]:
    """One line of a `metrics.jsonl` or of a recording: a JSON object of numbers. They may be NaN or infinite.

    An integer that does not fit into 64 bits is read as infinite.

    Raises:
        ValueError: the line is no JSON, or no object of numbers.
    """
    try:
        try:
            content = json.loads(line)
        except ValueError:
            content = json.loads(line, parse_int=float)  # Python refuses integers of more than 4,300 digits
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    if not isinstance(content, dict) or not all(isinstance(value, int | float) for value in content.values()):
        raise ValueError("the line is not an object of numbers")
    if not all(map(is_number, content.values())):
        infinite = {True: math.inf, False: -math.inf}
        return {key: value if is_number(value) else infinite[value > 0] for key, value in content.items()}
    return content


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value from a JSON file is a number that fits into 64 bits. True and False count as 1 and 0."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
