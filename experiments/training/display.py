"""The live view of a training run."""

from __future__ import annotations

import math
import time

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback

from agents import MultiTaskAlgorithm
from experiments.program.terminal import console

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 30.0


class TrainingDisplay(BaseCallback):
    """Shows progress, steps per second, the time gone and left, the returns and weights of the tasks, mean and worst.

    On a terminal of at least 60 columns the view is live; elsewhere a plain line is printed every 30 seconds, so that
    logs stay readable.

    Args:
        title: the name of the run.
        total_steps: environment steps of the whole training.
    """

    def __init__(self, title: str, total_steps: int) -> None:
        super().__init__()
        self._title = title
        self._total_steps = total_steps
        self._console = console()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
        )
        self._bar = self._progress.add_task(title, total=total_steps, speed="")
        self._live = Live(console=self._console, auto_refresh=False)
        self._started = self._shown = 0.0
        self._first_step = 0

    def _on_training_start(self) -> None:
        self._started = self._shown = time.monotonic()
        self._first_step = self.num_timesteps  # above 0 if a run is continued
        if self._console.is_terminal:
            self._live.start()
            self._show(self._started)

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now - self._shown >= (REFRESH_SECONDS if self._console.is_terminal else PLAIN_SECONDS):
            self._shown = now
            self._show(now)
        return True

    def _on_training_end(self) -> None:
        self._show(time.monotonic())
        self.stop()

    def stop(self) -> None:
        """Give the terminal back. This is also called after an error, when `_on_training_end` is not."""
        self._live.stop()

    def _show(self, now: float) -> None:
        steps_per_s = (self.num_timesteps - self._first_step) / max(now - self._started, 1e-9)
        if self._console.is_terminal:
            self._progress.update(self._bar, completed=self.num_timesteps, speed=f"{steps_per_s:,.0f} steps/s")
            self._live.update(Group(self._progress, self._table()), refresh=True)
        else:
            rows = "  ".join(f"{task} {value:.0f}" for task, value, _ in self._rows() if not math.isnan(value))
            left = max(0, self._total_steps - self.num_timesteps) / max(steps_per_s, 1e-9)
            steps = f"{self.num_timesteps:,} of {self._total_steps:,} steps"
            line = f"{self._title}: {steps}, {steps_per_s:,.0f}/s, {left:.0f} s left  returns: {rows}"
            self._console.print(line, soft_wrap=True)

    def _table(self) -> Table:
        table = Table("task")
        table.add_column("return", justify="right")
        table.add_column("weight", justify="right")
        rows = self._rows()
        for task, value, weight in rows:
            table.add_row(task, _shown(value), "-" if weight is None else f"{weight:.2f}")
        if len(rows) > 1:
            table.add_section()
            table.add_row("mean", _shown(sum(value for _, value, _ in rows) / len(rows)))
            known = [row for row in rows if not math.isnan(row[1])]
            if len(known) == len(rows):
                task, value, _ = min(known, key=lambda row: row[1])
                table.add_row(f"worst: {task}", _shown(value))
        return table

    def _rows(self) -> list[tuple[str, float, float | None]]:
        """The name of each task, the mean return of its last episodes, and its weight."""
        agent = self.model
        assert isinstance(agent, MultiTaskAlgorithm)
        weights = agent.diagnostics
        return [
            (task, value, weights.get(f"balancer/{task}/weight"))
            for task, value in zip(agent.task_names, agent.recent_returns, strict=True)
        ]


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
