"""The jobs of a sweep: its runs, and the state of each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from experiments.program.flags import UsageError
from experiments.sweep.grid import PlannedRun, refuse_other_settings
from experiments.sweep.worker import Outcome

REFUSED = 2
"""The exit status of a command that cannot be carried out, however often it is tried."""


class State(StrEnum):
    """The state of a run in a sweep."""

    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"
    FINISHED = "finished"
    SKIPPED = "skipped"
    FAILED = "failed"

    @property
    def is_last(self) -> bool:
        """Whether no other state follows this one."""
        return self in (State.FINISHED, State.SKIPPED, State.FAILED)


@dataclass
class Job:
    """A run of a sweep, with its state and the outcome of its attempts.

    Attributes:
        run: the run.
        state: the state of the run.
        deaths: how many attempts ended before the run was finished.
        problem: why the last of these attempts ended, in one line.
        log_size: the size of the log in bytes when the run was given to Ray. When the log grows, the run has begun.
    """

    run: PlannedRun
    state: State
    deaths: int = 0
    problem: str = ""
    log_size: int = 0

    @classmethod
    def of(cls, run: PlannedRun) -> Job:
        """A waiting job, or a skipped one if the run is finished already."""
        return cls(run, State.SKIPPED if run.is_finished else State.WAITING)

    def prepare(self) -> None:
        """Make the log file. A node finds it only in the right folder, and it grows when the run begins."""
        self.run.log.parent.mkdir(parents=True, exist_ok=True)
        self.run.log.touch()
        self.log_size = _size(self.run.log)

    def look(self) -> None:
        """Find out whether the run has begun."""
        if self.state in (State.WAITING, State.RETRYING) and _size(self.run.log) > self.log_size:
            self.state = State.RUNNING

    def judge(self, outcome: Outcome, retries: int) -> None:
        """Set the state according to how an attempt ended.

        Args:
            outcome: the outcome of the attempt.
            retries: how often a run that has died is tried again. A refused command is not tried again.
        """
        self.problem = outcome.problem
        if outcome.status == 0 or self.run.is_finished:  # the process may have died after the run was finished
            try:
                refuse_other_settings([self.run])  # another sweep may have begun the run
            except UsageError as error:
                self.problem = str(error)
            else:
                self.state = State.FINISHED
                return
        self.deaths += 1
        self.state = State.FAILED if outcome.status == REFUSED or self.deaths > retries else State.RETRYING


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the log has been deleted
        return 0
