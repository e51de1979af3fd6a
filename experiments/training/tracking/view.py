"""What a view of a training run is, and the episodes that it may show."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

EPISODE_COLUMNS = ("task", "episode", "env_step", "return", "length")


class View(KVWriter):
    """Shows a run's metrics somewhere else. A writer for the logger of Stable-Baselines3.

    Attributes:
        name: what a warning calls it.
    """

    name: str

    def settle(self) -> None:
        """All lines so far are part of the run for good: a checkpoint has them."""

    def finish(self, evaluation: Mapping[str, Any], episodes: Episodes) -> None:
        """The run is finished.

        Args:
            evaluation: the contents of evaluation.json.
            episodes: those of the training.
        """

    def end(self, finished: bool) -> None:
        """Let go of files and processes; nothing else is called any more."""


class Episodes(BaseCallback):
    """Notes every episode of the training. It has a state, so that a continued run has them all.

    Args:
        tasks: names, in the order of the columns of the environment.
        envs_per_task: columns of each.
    """

    def __init__(self, tasks: Sequence[str], envs_per_task: int) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self._envs_per_task = envs_per_task
        self._rows = array("d")  # task, env_step, return, length; 32 bytes an episode, and there may be very many

    @property
    def table(self) -> list[list[Any]]:
        """One row for each episode: task, number, environment steps at its end, return, length."""
        return [
            [self._tasks[int(task)], number, int(step), total, int(length)]
            for number, (task, step, total, length) in enumerate(self.state_dict()["rows"].tolist(), start=1)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The episodes so far, (N, 4)."""
        return {"rows": np.array(self._rows).reshape(-1, 4)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of `state_dict`."""
        self._rows = array("d", state["rows"].ravel())

    def _on_step(self) -> bool:
        for column in np.flatnonzero(self.locals["dones"]):
            episode = self.locals["infos"][column]["episode"]
            row = (int(column) // self._envs_per_task, self.num_timesteps, float(episode["r"]), int(episode["l"]))
            self._rows.extend(row)
        return True
