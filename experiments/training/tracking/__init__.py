"""Views of a training run: TensorBoard and Weights & Biases (W&B).

metrics.jsonl in the folder of the run is the record. A view shows the same lines under the same names, with `env_step`
as its axis. A view changes nothing in the training, and when a view fails, the training goes on without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from stable_baselines3.common.logger import KVWriter

from experiments.training.config import TrainConfig
from experiments.training.tracking.tensorboard import TENSORBOARD_FOLDER, TensorBoardView
from experiments.training.tracking.view import Episodes, View
from experiments.training.tracking.wandb_view import WandbView

__all__ = ["TENSORBOARD_FOLDER", "Episodes", "Views", "WandbView"]


class Views(KVWriter):
    """All views of one run. They are opened when the run begins, and closed when the `with` block ends for any reason.

    A view that fails is closed, with one line of warning.
    """

    def __init__(self) -> None:
        self._views: list[View] = []
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._each(lambda view: view.end(self._finished))
        self._views.clear()

    def open(self, config: TrainConfig, description: Mapping[str, Any], continued_at: int | None) -> None:
        """Open the views that the settings ask for.

        Args:
            config: the settings of the run.
            description: the contents of config.json.
            continued_at: the environment step from which the run is continued; None if the run is new.
        """
        if config.tensorboard:
            tasks = list(description["environments"])
            self._add("TensorBoard", lambda: TensorBoardView(config.run_dir, tasks, continued_at))
        if config.wandb != "disabled":
            self._add("W&B", lambda: WandbView(config, description, continued_at))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Show one line of metrics."""
        self._each(lambda view: view.write(key_values, key_excluded, step))

    def settle(self) -> None:
        """Tell the views that a checkpoint covers all lines so far, so that no later resume takes them back."""
        self._each(lambda view: view.settle())

    def finish(self, evaluation: Mapping[str, Any], episodes: Episodes) -> None:
        """Show the results of the finished run; see `View.finish`. model.zip and evaluation.json are on the disk."""
        self._finished = True
        self._each(lambda view: view.finish(evaluation, episodes))

    def close(self) -> None:
        """Do nothing. The logger closes its writers after the training, but the views still show the evaluation."""

    def _add(self, name: str, make: Callable[[], View]) -> None:
        try:
            self._views.append(make())
        except Exception as error:
            _warn(name, error)

    def _each(self, act: Callable[[View], None]) -> None:
        for view in list(self._views):
            try:
                act(view)
            except Exception as error:
                self._views.remove(view)
                with suppress(Exception):
                    view.end(finished=False)
                _warn(view.name, error)


def _warn(name: str, error: Exception) -> None:
    problem = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"warning: {name} failed, the run goes on without it ({problem})", file=sys.stderr)
