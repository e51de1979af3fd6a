"""Checkpoints of a run in training, and continuing from them as if nothing had happened.

A checkpoint holds all that the rest of the run depends on, so that a continued run is the uninterrupted one, bit for
bit. It is taken where a rollout begins, and taking it changes nothing.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import JSONOutputFormat

from agents import MultiTaskDQN
from envs import TaskVecEnv
from experiments.analysis.runs import CHECKPOINT_FILE, LOCK_FILE, METRICS_FILE, PREVIOUS_FILE
from experiments.program.flags import UsageError
from experiments.program.stopping import StopSignals, disk_errors
from mtrl import checkpoint

KIND = "training"
ANEW = "give --overwrite or --no-resume to start anew"
LARGEST_SHARE = 0.03
"""Share of the time that writing checkpoints may take: after a slow write the next one waits the longer."""

# Settings that do not change what is learned.
FREE_SETTINGS = (
    *("preset", "results_dir", "overwrite", "quiet", "checkpoint_interval", "resume", "step_timeout"),
    "on_nonfinite",  # without effect up to the checkpoint: a run that met a NaN may go on and skip it
    *("tensorboard", "wandb", "wandb_project", "wandb_entity"),
)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in `folder`. The lock ends with the process, whatever ends that.

    Raises:
        UsageError: another process has it, or the folder can't be written to.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path, timeout=0)
    with disk_errors(folder, UsageError):
        try:
            lock.acquire()
        except Timeout:
            another = f"another process is training in '{folder}'; wait for it, or give another --seed"
            raise UsageError(another) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps an open file; there the release removes it
            path.unlink()
        lock.release()


@dataclass(frozen=True)
class SavedRun:
    """A run that can be continued."""

    path: Path  # the checkpoint
    state: dict[str, Any]  # its contents

    @property
    def steps(self) -> int:
        """Environment steps from which it goes on."""
        return int(self.state["steps"])


def find_run(folder: Path, description: Mapping[str, Any]) -> SavedRun | None:
    """The run to continue in `folder`, None if there is none; one line of warning if its last checkpoint is damaged.

    Args:
        folder: the run's.
        description: what is about to run, as in config.json.

    Raises:
        UsageError: no checkpoint that is there can be read, or it is of a run with other settings.
    """
    problems: list[str] = []
    for path in (folder / CHECKPOINT_FILE, folder / PREVIOUS_FILE):
        if not os.path.lexists(path):
            continue
        try:
            state = _read(path)
        except (checkpoint.CheckpointError, OSError) as error:
            problems.append(" ".join(str(error).split()))
            continue
        _check_settings(folder, state["description"], description)
        for problem in problems:
            print(f"warning: {problem}; continuing from the one before, '{path.name}'", file=sys.stderr)
        return SavedRun(path, state)
    if problems:
        raise UsageError(f"{'; '.join(problems)}; {ANEW}")
    return None


def _read(path: Path) -> dict[str, Any]:
    """The checkpoint in `path`.

    Raises:
        CheckpointError: it is damaged, something else, or does not go with the metrics beside it.
        OSError: it can't be read.
    """
    state = checkpoint.load(path)
    if state.get("kind") != KIND or not isinstance(state.get("steps"), int):
        raise checkpoint.CheckpointError(f"cannot continue from '{path}': it is not of a run in training")
    metrics = path.with_name(METRICS_FILE)
    if not metrics.is_file() or metrics.stat().st_size < state["metrics_length"]:
        raise checkpoint.CheckpointError(f"cannot continue from '{path}': '{metrics}' has lost lines since")
    return state


def _check_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    def flat(description: Mapping[str, Any]) -> dict[str, Any]:
        settings = {name: value for name, value in description["settings"].items() if name not in FREE_SETTINGS}
        return {"method": description["method"], **settings, **description["versions"]}

    old, new = flat(before), flat(now)
    differences = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    if differences:
        raise UsageError(
            f"'{folder}' holds an unfinished run with other settings: {', '.join(differences)}; "
            "repeat its settings to continue it, or give --overwrite to start anew"
        )


class Resumable(Protocol):
    """Something in a run, beside the agent and its environments, that has a state."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""


class MetricsFile(JSONOutputFormat):
    """metrics.jsonl, which goes on where it ended."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "a")  # noqa: SIM115 - `close` closes it; Stable-Baselines3's would empty the file

    def sync(self) -> int:
        """Put all lines on the disk; returns their length in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def cut(self, length: int) -> None:
        """Drop what follows the first `length` bytes."""
        self.file.truncate(length)


class Checkpoints(BaseCallback):
    """Writes a checkpoint now and then and when a signal asks the run to stop, and begins the run from an earlier one.

    Args:
        folder: where to write.
        description: what runs, as in config.json.
        env: what the agent learns in.
        metrics: the run's metrics.
        parts: other callbacks that have a state.
        signals: what may ask the run to stop.
        interval: seconds from one checkpoint to the next, more where a write takes long; 0 for none.
        saved: the run to continue. Default None: a new one.
        on_saved: called when a checkpoint is on the disk. Default: nothing.

    Attributes:
        steps: environment steps at the last checkpoint; None before the first.
        seconds: what writing them has taken, of the whole run.
    """

    def __init__(
        self,
        folder: Path,
        description: Mapping[str, Any],
        env: TaskVecEnv,
        metrics: MetricsFile,
        parts: Sequence[Resumable],
        signals: StopSignals,
        interval: float,
        saved: SavedRun | None = None,
        on_saved: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.steps: int | None = None
        self.seconds = 0.0
        self._folder = folder
        self._description = description
        self._env = env
        self._metrics = metrics
        self._parts = parts
        self._signals = signals
        self._interval = interval
        self._saved = saved
        self._on_saved = on_saved
        self._trained = 0.0  # seconds
        self._last_end = 0.0
        self._last_duration = 0.0
        # How far the present rollout is: whole steps, and where the exploration stood before the one under way.
        self._rollout_steps = 0
        self._exploration: dict[str, Any] = {}

    @property
    def agent(self) -> MultiTaskDQN:
        """What learns."""
        assert isinstance(self.model, MultiTaskDQN)
        return self.model

    def _on_training_start(self) -> None:
        self._train_freq: Any = self.agent.train_freq
        if self._saved is not None:
            try:
                self._restore(self._saved.state)
            # What a file with good checksums and wrong contents may lead to.
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                problem = " ".join(f"{type(error).__name__}: {error}".split())
                raise UsageError(f"cannot continue from '{self._saved.path}': {problem}; {ANEW}") from error
            if self._saved.path.name == PREVIOUS_FILE:  # or the next checkpoint would replace it by the damaged one
                os.replace(self._saved.path, self._folder / CHECKPOINT_FILE)
            self._saved = None  # its replay is large
        self._last_end = time.monotonic()

    def _on_rollout_start(self) -> None:
        self.agent.train_freq = self._train_freq
        self._exploration = self.agent.exploration_generator_state
        if self._signals.received:
            self.save()
            self._signals.answer()
        if self._interval and self._is_due(self._interval):
            self.save()

    def _on_step(self) -> bool:
        self._rollout_steps += 1
        self._exploration = self.agent.exploration_generator_state
        return True

    def _on_rollout_end(self) -> None:
        self._rollout_steps = 0

    def _on_training_end(self) -> None:
        # For the final evaluation, which takes a while. A run that a callback has ended is amid a step.
        if self._interval and self._is_due(0) and self.agent.num_timesteps >= self.locals["total_timesteps"]:
            self.save()
        self._trained = (time.time_ns() - self.agent.start_time) / 1e9

    def _is_due(self, interval: float) -> bool:
        return time.monotonic() - self._last_end >= max(interval, self._last_duration / LARGEST_SHARE)

    def save(self) -> None:
        """Write a checkpoint of the last whole step, if checkpoints are wanted and a rollout has begun.

        Raises:
            OSError: it can't be written. The last one is as it was.
        """
        if not self._interval or not self._exploration:
            return
        begun = time.monotonic()
        path = self._folder / CHECKPOINT_FILE
        checkpoint.save(path, self._state(), previous=self._folder / PREVIOUS_FILE)
        self._last_end = time.monotonic()
        self._last_duration = self._last_end - begun
        self.steps = self.agent.num_timesteps
        self.seconds += self._last_duration
        self.logger.record("time/checkpoints_s", self.seconds)
        self._on_saved()

    @property
    def kept(self) -> str:
        """Where the last checkpoint is, in words."""
        return f"'{self._folder / CHECKPOINT_FILE}' is kept" if self.steps is not None else "there is no checkpoint"

    @property
    def cost(self) -> str:
        """What the checkpoints have cost, in words."""
        return f"checkpoints took {self.seconds:.1f} s, {self.seconds / max(self._trained, 1e-9):.1%} of training"

    def remove(self) -> None:
        """The run is finished: delete its checkpoints."""
        for name in (CHECKPOINT_FILE, PREVIOUS_FILE):
            (self._folder / name).unlink(missing_ok=True)

    @property
    def outlook(self) -> str:
        """What becomes of a run that ends now."""
        if self.steps is None:
            if not self._interval:
                return "without checkpoints it can't be continued"
            return "there is no checkpoint yet, so the same command starts anew"
        settings = self._description["settings"]
        fresh = [
            flag
            for flag, given in (("--overwrite", settings["overwrite"]), ("--no-resume", not settings["resume"]))
            if given
        ]
        without = f" without {' and '.join(fresh)}" if fresh else ""
        return f"the same command{without} continues from step {self.steps:,}"

    def _state(self) -> dict[str, Any]:
        logger = self.logger
        return {
            "kind": KIND,
            "description": self._description,
            "steps": self.agent.num_timesteps,
            # The agent may have chosen the actions of a step that failed: the exploration is as it was before.
            "agent": {**self.agent.training_state(), "exploration": self._exploration},
            "environments": self._env.state_dict(),
            "parts": [part.state_dict() for part in self._parts],
            "rollout_steps": self._rollout_steps,
            "metrics_length": self._metrics.sync(),
            "metrics_pending": [dict(logger.name_to_value), dict(logger.name_to_excluded), dict(logger.name_to_count)],
            "checkpoints_s": self.seconds,
            # The agent leaves the global generators alone; a balancer may draw from them.
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        agent, logger = self.agent, self.logger
        agent.set_training_state(state["agent"])
        observations = self._env.load_state_dict(state["environments"])
        if not np.array_equal(np.asarray(observations), np.asarray(agent._last_obs)):
            raise ValueError("the environments do not come back to where they were")
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        # A rollout that was under way is finished with the steps that it lacks.
        self._rollout_steps = state["rollout_steps"]
        agent.train_freq = self._train_freq._replace(frequency=self._train_freq.frequency - self._rollout_steps)
        pending: list[Any] = [logger.name_to_value, logger.name_to_excluded, logger.name_to_count]
        for ours, saved in zip(pending, state["metrics_pending"], strict=True):
            ours.update(saved)
        self.seconds = state["checkpoints_s"]
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        self.steps = agent.num_timesteps
        self._metrics.cut(state["metrics_length"])
