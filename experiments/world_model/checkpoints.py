"""What a checkpoint of an unfinished run holds. `RunFolder` decides where and how often one is written."""

from __future__ import annotations

import os
import time
from typing import Any

from experiments.program.run_files import METRICS_FILE
from experiments.program.run_folder import RunFolder
from experiments.world_model.training import Trainer
from mtrl.files import open_regular
from mtrl.states import Number, check_form

KIND = "world_model_training"

# Settings that do not change what is learned, so that they may differ when a run is continued.
FREE_SETTINGS = ("results_dir", "checkpoint_interval", "quiet", "quick")


class Checkpoints:
    """Saves a trainer and its processor time, and brings them back where the folder holds a saved run.

    Args:
        run: the folder of the run, which has begun.
        trainer: the trainer.
    """

    def __init__(self, run: RunFolder, trainer: Trainer) -> None:
        self._run = run
        self._trainer = trainer
        self._seconds = 0.0  # of processor time, before this process
        if run.saved is not None:
            with run.restoring() as state:
                check_form("seconds", state["seconds"], Number(0))
                trainer.load_state_dict(state["trainer"])
                check_form("steps", state.get("steps", trainer.steps), trainer.steps)
                self._seconds = float(state["seconds"])
                run.steps = trainer.steps
        self._begun = time.process_time()

    @property
    def seconds(self) -> float:
        """The processor time that the run has taken, over all its processes."""
        return self._seconds + time.process_time() - self._begun

    def save_if_due(self) -> None:
        """Write a checkpoint if the interval has passed, or if a signal asks the run to stop, which then ends here.

        Raises:
            StopSignal: a signal has arrived.
        """
        if self._run.is_due() or self._run.signals.received:
            self._run.checkpoint(self._state)
        self._run.signals.answer()

    def _state(self) -> dict[str, Any]:
        return {
            "steps": self._trainer.steps,
            "seconds": self.seconds,
            "trainer": self._trainer.state_dict(),
            "metrics_length": self._metrics_length(),
        }

    def _metrics_length(self) -> int:
        """Put all lines of the metrics on the disk, and return their length in bytes."""
        with open_regular(self._run.file(METRICS_FILE), "ab") as file:  # the recorder has flushed every line
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size
