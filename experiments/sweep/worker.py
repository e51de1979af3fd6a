"""What a node of the cluster does: it carries out one run in a process of its own."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import experiments
from experiments.program.locking import wait_for_lock

POLL_SECONDS = 0.2
LOCK_SECONDS = 180.0
"""How long to wait for the lock on the folder of a run. A process that is about to end may still hold it, or a node
that is lost: NFS keeps the locks of such a node for a minute and a half."""

STOP_SECONDS = 120.0
"""How long a run may take to write its checkpoint when it is told to stop."""

TAIL_BYTES = 1 << 14
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Outcome:
    """How the process of a run ended.

    Attributes:
        status: the exit status of the process; -n if signal n killed it.
        last_line: the last line that the process printed.
    """

    status: int
    last_line: str

    @property
    def problem(self) -> str:
        """Why the run did not finish, in one line."""
        if self.status < 0:
            names = {number.value: number.name for number in signal.Signals}
            return f"killed by {names.get(-self.status, f'signal {-self.status}')}"
        return self.last_line or f"exit status {self.status}"


def train(package: str, flags: Sequence[str], folder: Path, log: Path) -> Outcome:
    """Run `python -m experiments.<package>.train <flags>` to its end.

    An exception, such as the one that Ray raises when the task is cancelled, stops the run, which then writes a
    checkpoint.

    Args:
        package: the package of the method.
        flags: the words on the command line of the run.
        folder: the folder to which the run writes with these flags.
        log: the file to which the output of the run is appended. It exists; if it does not, this node has another file
            system, and the results of a training here would be lost.

    Raises:
        FileNotFoundError: there is no `log`.
    """
    words = [f"experiments.{package}.train", *flags]
    root = os.pathsep.join(Path(folder).parent.as_posix() for folder in experiments.__path__)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # Ray cancels a task by an interrupt. A shell that starts a sweep in the background has it ignore interrupts, and
    # this process has inherited that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "r+b", opener=_appending) as output:
        output.write(f"-- {time.strftime('%F %T')}, {platform.node()}: python -m {shlex.join(words)}\n".encode())
        output.flush()
        begin = output.seek(0, os.SEEK_END)
        wait_for_lock(folder, LOCK_SECONDS)  # if the lock is still held then, the run will say so
        # An interrupt that comes while the process is started waits until `finally` below would stop the process.
        interrupts: list[int] = []
        handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "experiments.sweep.child", str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
                start_new_session=True,  # so that Ctrl-C in the sweep's terminal reaches the sweep alone
            )
        finally:
            signal.signal(signal.SIGINT, handler)
        try:
            if interrupts:
                raise KeyboardInterrupt
            # It waits in small steps, because an exception from outside is raised only when a call returns.
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
    # A process on a lost node may still be writing there; and a stranger's folder may hold a link.
    return os.open(path, flags | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))


def sees(file: Path) -> bool:
    """Whether this node sees the file."""
    return file.exists()
