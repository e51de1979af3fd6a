"""The runs of a sweep and how they fare."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from experiments.sweep.grid import PlannedRun
from experiments.sweep.worker import Outcome

REFUSED = 2
"""Exit status of a command that can't be carried out, however often it is tried."""


class State(StrEnum):
    """Where a run of a sweep is."""

    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"
    FINISHED = "finished"
    SKIPPED = "skipped"
    FAILED = "failed"

    @property
    def is_last(self) -> bool:
        """Whether no other follows."""
        return self in (State.FINISHED, State.SKIPPED, State.FAILED)


@dataclass
class Job:
    """A run of a sweep, its state, and what its attempts have come to.

    Attributes:
        deaths: attempts that ended before the run did.
        problem: what the last of them ended with, in one line.
        log_size: bytes of its log when it was handed to Ray; it runs when there are more.
    """

    run: PlannedRun
    state: State
    deaths: int = 0
    problem: str = ""
    log_size: int = 0

    @classmethod
    def of(cls, run: PlannedRun) -> Job:
        """A job that waits, or that is skipped where the run is finished."""
        return cls(run, State.SKIPPED if run.is_finished else State.WAITING)

    def prepare(self) -> None:
        """Make the log, which tells a node that it sees the right folder, and this process when the run begins."""
        self.run.log.parent.mkdir(parents=True, exist_ok=True)
        self.run.log.touch()
        self.log_size = _size(self.run.log)

    def look(self) -> None:
        """Find out whether it runs by now."""
        if self.state in (State.WAITING, State.RETRYING) and _size(self.run.log) > self.log_size:
            self.state = State.RUNNING

    def judge(self, outcome: Outcome, retries: int) -> None:
        """Take note of how an attempt ended.

        Args:
            outcome: of the attempt.
            retries: how many deaths are followed by another attempt. A refused command is not.
        """
        if outcome.status == 0 or self.run.is_finished:  # it may have died when all was done
            self.state = State.FINISHED
            return
        self.deaths += 1
        self.problem = outcome.problem
        self.state = State.FAILED if outcome.status == REFUSED or self.deaths > retries else State.RETRYING


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # someone has deleted it
        return 0
