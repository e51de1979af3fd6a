"""What an agent writes into its logs: returns and losses of every task, and what the balancer says."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.utils import safe_mean
from torch import Tensor

from mtrl.recorder import named
from mtrl.rl.nonfinite import FiniteGuard
from mtrl.rl.saving import SavedAlgorithm
from mtrl.rl.tables import widen_tables


class LoggedAlgorithm(SavedAlgorithm):
    """The part of `MultiTaskAlgorithm` that writes logs; see there for the attributes."""

    guard: FiniteGuard
    _episode_stats: list[deque[tuple[float, int]]]  # return and length of the last episodes of each task
    _task_of_column: NDArray[np.int64]
    _loss_sum: Tensor  # (T,)
    _loss_count: int
    _begun_ns: int

    @property
    def elapsed_ns(self) -> int:
        """Nanoseconds since `learn` began, without the pauses of an interrupted run. The wall clock does not count."""
        return time.monotonic_ns() - self._begun_ns

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if dones is None or not dones.any():
            return
        for column in np.flatnonzero(dones):
            episode = infos[column].get("episode")
            if episode is not None:
                self._episode_stats[self._task_of_column[column]].append((episode["r"], episode["l"]))
        for balancer in self.balancers:
            balancer.record_returns(torch.tensor(self.recent_returns, dtype=torch.float64))

    @property
    def recent_returns(self) -> list[float]:
        """Mean return of the last finished episodes of each task (`stats_window_size`); NaN before the first."""
        return [safe_mean([r for r, _ in episodes]) for episodes in self._episode_stats]

    @property
    def mean_losses(self) -> list[float]:
        """Mean loss of each task since the last logs were written; NaN if there was no update."""
        return (self._loss_sum / self._loss_count).tolist()

    @property
    def diagnostics(self) -> dict[str, float]:
        """The balancer's diagnostics at the last update, by their names in the logs (`balancer/<task>/weight`, ...)."""
        return dict(named({**self.update.conflict, **self.update.diagnostics}, self.task_names))

    def dump_logs(self) -> None:
        """Record per-task returns, losses and the balancer's diagnostics, then write one line of logs."""
        record = self.logger.record
        record("env_step", self.num_timesteps, exclude="tensorboard")
        record("train/updates", self._n_updates, exclude="tensorboard")
        elapsed = self.elapsed_ns
        # Stable-Baselines3 reads the wall clock, which may be set back or forward while the agent learns.
        self.start_time = time.time_ns() - elapsed
        record("time/steps_per_s", (self.num_timesteps - self._num_timesteps_at_start) / max(elapsed / 1e9, 1e-9))
        for task, name in enumerate(self.task_names):
            if self._episode_stats[task]:
                record(f"train/{name}/return", self.recent_returns[task])
                record(f"train/{name}/length", safe_mean([length for _, length in self._episode_stats[task]]))
            if self._loss_count:
                record(f"train/{name}/loss", self.mean_losses[task])
        for key, value in self.diagnostics.items():
            record(key, value)
        for key, count in self.guard.skipped.items():
            record(key, count)
        self._loss_sum.zero_()
        self._loss_count = 0
        widen_tables(self.logger)
        super().dump_logs()
