"""Checkpoints of an unfinished run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.analysis.runs import CHECKPOINT_FILE, PREVIOUS_FILE
from experiments.program.flags import UsageError
from experiments.world_model.config import WorldModelConfig
from experiments.world_model.training import Trainer
from mtrl import checkpoint
from mtrl.files import one_line

KIND = "world_model_training"
# Settings that do not change what is learned.
FREE_SETTINGS = ("results_dir", "overwrite", "resume", "checkpoint_interval", "quiet", "quick")


class Checkpoints:
    """Writes the state of an unfinished run now and then, from which the same command goes on.

    Args:
        folder: the run's.
        config: what runs.

    Attributes:
        seconds: that the run has trained for, by the processor's clock.
    """

    def __init__(self, folder: Path, config: WorldModelConfig) -> None:
        self._folder = folder
        self._config = config
        self._saved_at: int | None = None
        self._last = time.monotonic()
        self._seconds = 0.0
        self._begun = time.process_time()

    @property
    def seconds(self) -> float:
        """Of processor time that the run has taken, over all its processes."""
        return self._seconds + time.process_time() - self._begun

    def restore(self, trainer: Trainer, saved: Mapping[str, Any]) -> None:
        """Go on from `saved`."""
        try:
            trainer.load_state_dict(saved["trainer"])
            self._seconds = float(saved["seconds"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            problem = one_line(f"{type(error).__name__}: {error}")
            raise UsageError(f"cannot continue in '{self._folder}': {problem}; give --overwrite") from error
        self._begun = time.process_time()
        self._saved_at = trainer.steps

    def save_if_due(self, trainer: Trainer) -> None:
        """Write one, if the interval has passed."""
        interval = self._config.checkpoint_interval
        if interval and time.monotonic() - self._last >= interval:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write one, if they are wanted at all."""
        if not self._config.checkpoint_interval:
            return
        state = {
            "kind": KIND,
            "settings": binding(self._config),
            "seconds": self.seconds,
            "trainer": trainer.state_dict(),
        }
        checkpoint.save(self._folder / CHECKPOINT_FILE, state, previous=self._folder / PREVIOUS_FILE)
        self._saved_at = trainer.steps
        self._last = time.monotonic()

    def remove(self) -> None:
        """The run is finished."""
        for name in (CHECKPOINT_FILE, PREVIOUS_FILE):
            (self._folder / name).unlink(missing_ok=True)

    @property
    def outlook(self) -> str:
        """What becomes of a run that ends now."""
        if self._saved_at is None:
            return "there is no checkpoint, so the same command starts anew"
        without = " without --overwrite" * self._config.overwrite
        return f"the same command{without} continues from update {self._saved_at:,}"


def find_run(folder: Path, config: WorldModelConfig) -> dict[str, Any] | None:
    """The checkpoint to continue from, None if there is none.

    Raises:
        UsageError: none that is there can be read, or it is of a run with other settings.
    """
    problems: list[str] = []
    for path in (folder / CHECKPOINT_FILE, folder / PREVIOUS_FILE):
        if not os.path.lexists(path):
            continue
        try:
            state = checkpoint.load(path)
            if state.get("kind") != KIND or not isinstance(state.get("settings"), dict):
                raise checkpoint.CheckpointError(f"cannot continue from '{path}': it is of no world model in training")
        except (checkpoint.CheckpointError, OSError) as error:
            problems.append(" ".join(str(error).split()))
            continue
        before, now = state["settings"], binding(config)
        changed = [
            f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in now if before.get(name) != now[name]
        ]
        if changed:
            raise UsageError(
                f"'{folder}' holds an unfinished run with other settings: {', '.join(changed)}; repeat its settings to "
                "continue it, or give --overwrite to start anew"
            )
        for problem in problems:
            print(f"warning: {problem}; continuing from the one before, '{path.name}'", file=sys.stderr)
        return state
    if problems:
        raise UsageError(f"{'; '.join(problems)}; give --overwrite or --no-resume to start anew")
    return None


def binding(config: WorldModelConfig) -> dict[str, Any]:
    """The settings that a run must keep to be continued."""
    return {name: value for name, value in config.settings.items() if name not in FREE_SETTINGS}
