"""Locks on folders: one process at a time writes into a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.program.flags import UsageError
from experiments.program.stopping import disk_errors

LOCK_FILE = ".lock"  # it exists only while a process holds the lock


@contextmanager
def locked(
    folder: Path, holder: str = "another process is writing to", otherwise: str = "wait for it"
) -> Iterator[None]:
    """Keep other processes from writing into `folder`. The lock ends with the process, whatever ends the process.

    Args:
        folder: the folder, which exists.
        holder: what the process that holds the lock is doing, for the message.
        otherwise: what to do about it.

    Raises:
        UsageError: another process holds the lock, or the folder cannot be written to.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path, timeout=0)
    with disk_errors(folder, UsageError):
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(f"{holder} '{folder}'; {otherwise}") from None
    there = identity(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps an open file; the release removes it there
            if identity(folder) == there:  # otherwise this would be the lock of another process
                path.unlink()
        lock.release()


def wait_for_lock(folder: Path, seconds: float) -> None:
    """Wait until no other process writes into the folder, at most so many seconds."""
    path = folder / LOCK_FILE
    if path.exists():
        with suppress(Timeout), FileLock(path, timeout=seconds):
            pass


def identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one that takes its place; None if there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
