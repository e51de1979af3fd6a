"""The base class of a view of a training run, and the episodes that a view may show."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from mtrl.states import Like, check_form

EPISODE_COLUMNS = ("task", "episode", "env_step", "return", "length")


class View(KVWriter):
    """Shows the metrics of a run in another program. It is a writer for the logger of Stable-Baselines3.

    Attributes:
        name: the name of the view in warnings.
    """

    name: str

    def settle(self) -> None:
        """Learn that a checkpoint covers all lines so far, so that no later resume takes them back."""

    def finish(self, evaluation: Mapping[str, Any], episodes: Episodes) -> None:
        """Show the results of the finished run.

        Args:
            evaluation: the contents of evaluation.json.
            episodes: the episodes of the training.
        """

    def end(self, finished: bool) -> None:
        """Close files and end processes. No other method is called after this one."""


class Episodes(BaseCallback):
    """Records every episode of the training. It has a state, so that a continued run has all episodes.

    Args:
        tasks: the names of the tasks, in the order of their columns in the vector environment.
        columns: the number of columns of each task.
    """

    def __init__(self, tasks: Sequence[str], columns: Sequence[int]) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self._task_of_column = [task for task, count in enumerate(columns) for _ in range(count)]
        self._rows = array("d")  # task, env_step, return, length; 32 bytes an episode, and there may be very many

    @property
    def table(self) -> list[list[Any]]:
        """One row for each episode: its task, its number, the environment steps at its end, its return, its length."""
        return [
            [self._tasks[int(task)], number, int(step), total, int(length)]
            for number, (task, step, total, length) in enumerate(self.state_dict()["rows"].tolist(), start=1)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The episodes so far, (N, 4)."""
        return {"rows": np.array(self._rows).reshape(-1, 4)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is not a list of episodes of these tasks.
        """
        check_form("the episodes", state, {"rows": Like(np.zeros((0, 4)), rows=True, finite=False)})
        tasks, steps, _, lengths = state["rows"].T
        if not (np.isin(tasks, range(len(self._tasks))) & (steps >= 0) & (lengths >= 0) & (lengths <= steps)).all():
            raise ValueError("the episodes hold a task, a step or a length that is impossible")
        self._rows = array("d", state["rows"].ravel())

    def _on_step(self) -> bool:
        for column in np.flatnonzero(self.locals["dones"]):
            episode = self.locals["infos"][column]["episode"]
            row = (self._task_of_column[int(column)], self.num_timesteps, float(episode["r"]), int(episode["l"]))
            self._rows.extend(row)
        return True
