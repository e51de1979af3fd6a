"""Files that are replaced in one step, lines of numbers in JSON, and messages of one line.

This module needs nothing but Python.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeGuard

__all__ = ["is_number", "one_line", "parse_numbers", "replacing"]


def one_line(text: object, longest: int = 500) -> str:
    """`text` on one line, with control characters escaped so that they cannot act on a terminal.

    Args:
        text: what to show; a stranger may have chosen it.
        longest: characters to keep; what is longer is cut and ends with " ...". 0 keeps all of them. Default 500.
    """
    words = " ".join(str(text).split())
    message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return message if not longest or len(message) <= longest else f"{message[:longest]} ..."


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` when the block ends, and vanishes when the block fails.

    Missing parent folders are created. A killed process leaves the temporary file behind, named `.<hexadecimal>.tmp`.

    Args:
        path: the file to replace.
        previous: where to keep the old file, in the same folder. Default: it is not kept.

    Raises:
        OSError: the file cannot be written. The old one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary file stands in the same folder, because a rename is atomic only within one file system. `tempfile`
    # would make it readable by its owner alone, while `open` follows the umask.
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
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


def parse_numbers(line: str | bytes) -> dict[str, float]:
    """One line of a `metrics.jsonl` or of a recording: a JSON object of numbers. They may be NaN or infinite.

    Raises:
        ValueError: the line is no JSON, or no object of numbers.
    """
    try:
        content = json.loads(line)
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    if not isinstance(content, dict) or not all(map(is_number, content.values())):
        raise ValueError("the line is not an object of numbers")
    return content


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value from a JSON file is a number that fits into 64 bits. True and False count as 1 and 0."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
