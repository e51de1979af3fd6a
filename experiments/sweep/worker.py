"""What a node of the cluster does: one run, as a process of its own."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

import experiments
from experiments.analysis.runs import LOCK_FILE

POLL_SECONDS = 0.2
LOCK_SECONDS = 180.0
"""For how long a run's folder may still be locked, by a process that is about to end or by a node that is gone: NFS
keeps the locks of such a one for a minute and a half."""

STOP_SECONDS = 120.0
"""How long a run may take to write its checkpoint when it is told to stop."""

TAIL_BYTES = 1 << 14
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Outcome:
    """How a run's process ended.

    Attributes:
        status: its exit status; -n if signal n killed it.
        last_line: the last that it printed.
    """

    status: int
    last_line: str

    @property
    def problem(self) -> str:
        """Why it did not finish, in one line."""
        if self.status < 0:
            names = {number.value: number.name for number in signal.Signals}
            return f"killed by {names.get(-self.status, f'signal {-self.status}')}"
        return self.last_line or f"exit status {self.status}"


def train(package: str, flags: Sequence[str], folder: Path, log: Path) -> Outcome:
    """Run `python -m experiments.<package>.train <flags>` to its end.

    An exception, such as Ray's when the task is cancelled, stops the run, which then writes a checkpoint.

    Args:
        package: what trains.
        flags: the run's settings.
        folder: where they have the run put its files.
        log: what the run prints is appended to it. It exists: where it does not, this node has another file system, and
            what is trained here would be lost.

    Raises:
        FileNotFoundError: there is no `log`.
    """
    words = [f"experiments.{package}.train", *flags]
    root = os.pathsep.join(Path(folder).parent.as_posix() for folder in experiments.__path__)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # Ray cancels by an interrupt, which a sweep that a shell has put into the background hands down as ignored.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "r+b", opener=_appending) as output:
        output.write(f"-- {time.strftime('%F %T')}, {platform.node()}: python -m {shlex.join(words)}\n".encode())
        output.flush()
        begin = output.seek(0, os.SEEK_END)
        _wait_for_lock(folder / LOCK_FILE)
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.sweep.child", str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C at the sweep's terminal is the sweep's to answer
        )
        try:
            # In small steps: an exception that comes from outside waits until a call is over.
            while (status := process.poll()) is None:
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        output.seek(max(begin, output.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = output.read().decode(errors="replace").splitlines()
    return Outcome(status, next((line.strip() for line in reversed(lines) if line.strip()), ""))


def _appending(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND)  # a process on a lost node may still be writing there


def sees(file: Path) -> bool:
    """Whether this node has the file."""
    return file.exists()


def _wait_for_lock(path: Path) -> None:
    """Give a process that holds the lock the time to end; whether it has, the run will say."""
    if path.exists():
        with suppress(Timeout), FileLock(path, timeout=LOCK_SECONDS):
            pass
