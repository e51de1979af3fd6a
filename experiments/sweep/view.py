"""What a sweep shows in the terminal while it goes on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.sweep.jobs import Job, State
from experiments.sweep.progress import Progress, duration, read_progress

REFRESH_SECONDS = 2.0
PLAIN_SECONDS = 30.0
STYLES = {State.RUNNING: "cyan", State.RETRYING: "yellow", State.FAILED: "red", State.FINISHED: "green"}


class SweepView:
    """Shows a table of the running jobs, and below it a line that counts all jobs, inside a `with` block.

    On a terminal the view is live; elsewhere the line is printed every 30 seconds. Every run that ends or dies gets a
    line of its own.
    """

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self._jobs = jobs
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._shown = time.monotonic()
        self._known: dict[str, Progress] = {}  # the progress of runs that have ended

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._live.stop()

    def tell(self, job: Job) -> None:
        """Print a line that says how an attempt of a run ended."""
        line = f"{job.run.name}: {job.state}"
        if job.state is State.FINISHED:
            if (value := read_progress(job.run.folder).mean_return) is not None:
                line += f", return {value:.1f}"
        else:
            line += f" after {job.deaths} attempt{'s' if job.deaths > 1 else ''}: {job.problem}"
        self.say(line, STYLES[job.state])

    def say(self, line: str, style: str = "") -> None:
        """Print a line above the table."""
        self._console.print(Text(line, style=style), soft_wrap=True)

    def show(self) -> None:
        """Update the view, if enough time has passed since the last update."""
        now = time.monotonic()
        if now - self._shown < (REFRESH_SECONDS if self._console.is_terminal else PLAIN_SECONDS):
            return
        self._shown = now
        if self._console.is_terminal:
            self._live.update(Group(self.table(), Text(self.summary())), refresh=True)
        else:
            self.say(self.summary())

    def _progress(self, job: Job) -> Progress:
        """The progress of a job. The files of a run that has ended are read only once."""
        name = job.run.name
        if name in self._known:
            return self._known[name]
        progress = read_progress(job.run.folder)
        if job.state.is_last:
            self._known[name] = progress
        return progress

    def table(self) -> Table:
        """A table of all runs if they fit on the screen, otherwise of the running and the failed ones."""
        room = max(self._console.height - 7, 3)
        jobs = list(self._jobs)
        if len(jobs) > room:
            jobs = [job for job in jobs if job.state in (State.RUNNING, State.RETRYING, State.FAILED)][:room]
        table = Table("run", "state", caption="return: mean over tasks; of a finished run, of its greedy episodes")
        for name in ("progress", "steps/s", "return"):
            table.add_column(name, justify="right")
        for job in jobs:
            now = self._progress(job)
            share = 1.0 if job.state in (State.FINISHED, State.SKIPPED) else now.steps / job.run.config.total_steps
            again = f" (attempt {job.deaths + 1})" if job.state is State.RUNNING and job.deaths else ""
            table.add_row(
                job.run.name,
                Text(f"{job.state}{again}", style=STYLES.get(job.state, "")),
                f"{share:.0%}",
                "-" if now.steps_per_s is None else f"{now.steps_per_s:,.0f}",
                "-" if now.mean_return is None else f"{now.mean_return:.1f}",
            )
        return table

    def summary(self) -> str:
        """How many runs are in each state, their total speed, and the time that is left at this speed."""
        counts = Counter(job.state for job in self._jobs)
        line = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
        speeds = [self._progress(job).steps_per_s for job in self._jobs if job.state is State.RUNNING]
        if speed := sum(filter(None, speeds)):
            unfinished = [job for job in self._jobs if not job.state.is_last]
            left = sum(max(job.run.config.total_steps - self._progress(job).steps, 0) for job in unfinished)
            line += f"; {speed:,.0f} steps/s together, about {duration(left / speed)} left"
        return line
