"""Checkpoints of a run in training, and continuing from them as if nothing had happened.

A checkpoint holds everything that the rest of the run depends on, so that a continued run equals an uninterrupted one
bit for bit. It is taken at the beginning of a rollout, and taking it changes nothing. `RunFolder` decides where and how
often checkpoints are written; this module knows what is in them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import JSONOutputFormat

from agents import MultiTaskAlgorithm
from experiments.program.run_folder import RunFolder
from mtrl.files import open_regular
from mtrl.rl.vec_env import TaskVecEnv
from mtrl.states import Each, Number, Whole, check_form

KIND = "training"


class Resumable(Protocol):
    """A part of a run with a state, besides the agent and its environments."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


class MetricsFile(JSONOutputFormat):
    """metrics.jsonl, to which a continued run appends."""

    def __init__(self, path: Path) -> None:
        self.file = open_regular(path, "a")  # Stable-Baselines3's would empty the file

    def sync(self) -> int:
        """Put all lines on the disk, and return the length of the file in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def cut(self, length: int) -> None:
        """Drop what follows the first `length` bytes."""
        self.file.truncate(length)


class Checkpoints(BaseCallback):
    """Writes checkpoints at intervals and when a signal asks the run to stop, and begins the run from a saved one.

    Args:
        run: the folder of the run, which has begun; if it holds a saved run, the training goes on from there.
        env: the environments that the agent learns in.
        metrics: the metrics of the run.
        parts: other callbacks that have a state.
        on_saved: called when a checkpoint is on the disk. Default: nothing happens.

    Attributes:
        run: as given.
    """

    def __init__(
        self,
        run: RunFolder,
        env: TaskVecEnv,
        metrics: MetricsFile,
        parts: Sequence[Resumable],
        on_saved: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.run = run
        self._env = env
        self._metrics = metrics
        self._parts = parts
        self._on_saved = on_saved
        self._trained = 0.0  # seconds
        # How far the present rollout is: whole steps, and the state of the exploration before the step under way.
        self._rollout_steps = 0
        self._exploration: dict[str, Any] = {}

    @property
    def agent(self) -> MultiTaskAlgorithm:
        """The agent that learns."""
        assert isinstance(self.model, MultiTaskAlgorithm)
        return self.model

    def _on_training_start(self) -> None:
        self._train_freq: Any = self.agent.train_freq
        if self.run.saved is not None:
            with self.run.restoring() as state:
                self._restore(state)

    def _on_rollout_start(self) -> None:
        self.agent.train_freq = self._train_freq
        self._exploration = self.agent.exploration_generator_state
        if self.run.signals.received:
            self.save()
            self.run.signals.answer()
        if self.run.is_due():
            self.save()

    def _on_step(self) -> bool:
        self._rollout_steps += 1
        self._exploration = self.agent.exploration_generator_state
        return True

    def _on_rollout_end(self) -> None:
        self._rollout_steps = 0

    def _on_training_end(self) -> None:
        # The final evaluation takes a while, so the whole training is saved before it. Where a callback has ended the
        # training, the last step is not complete, and nothing is saved.
        if self.run.is_due(0) and self.agent.num_timesteps >= self.locals["total_timesteps"]:
            self.save()
        self._trained = self.agent.elapsed_ns / 1e9

    def save(self) -> None:
        """Write a checkpoint of the last whole step, if a rollout has begun and the user wants checkpoints.

        Raises:
            OSError: the checkpoint cannot be written. The last one is untouched.
        """
        if not self._exploration:
            return
        self.run.checkpoint(self._state)
        self.logger.record("time/checkpoints_s", self.run.seconds)
        self._on_saved()

    @property
    def cost(self) -> str:
        """How long writing the checkpoints has taken, in words."""
        seconds = self.run.seconds
        return f"checkpoints took {seconds:.1f} s, {seconds / max(self._trained, 1e-9):.1%} of training"

    def _state(self) -> dict[str, Any]:
        logger = self.logger
        return {
            "steps": self.agent.num_timesteps,
            # The agent may have chosen actions for a step that then failed, so the exploration goes back to before it.
            "agent": {**self.agent.training_state(), "exploration": self._exploration},
            "environments": self._env.state_dict(),
            "parts": [part.state_dict() for part in self._parts],
            "rollout_steps": self._rollout_steps,
            "metrics_length": self._metrics.sync(),
            "metrics_pending": [dict(logger.name_to_value), dict(logger.name_to_excluded), dict(logger.name_to_count)],
            "checkpoints_s": self.run.seconds,
            # The agent does not draw from the global generators, but a balancer may.
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
        }

    def _check(self, state: Mapping[str, Any]) -> None:
        """Check what the parts of the run do not check themselves.

        Raises:
            ValueError: a part is missing or unknown, or has another form than `_state` gives it.
        """
        form = {
            **dict.fromkeys(("kind", "description", "agent", "environments"), Any),
            **dict.fromkeys(state.keys() & {"arithmetic", "exact"}, Any),  # which `RunFolder` checks
            "steps": state["agent"]["progress"]["num_timesteps"],
            "parts": list,
            "rollout_steps": Whole(self._train_freq.frequency),
            "metrics_length": Whole(),
            "metrics_pending": [Each(Number(), dict), Each(Each(str, tuple), dict), Each(Whole(), dict)],
            "checkpoints_s": Number(0),
            "python": (3, (Whole(2**32),) * 625, None if state["python"][2] is None else float),
            "numpy": ("MT19937", np.zeros(624, np.uint32), Whole(625), Whole(2), Number()),
            "torch": torch.get_rng_state(),
        }
        check_form("the checkpoint", dict(state), form)
        most = self.locals["total_timesteps"] + self._env.num_envs * self._train_freq.frequency
        if state["steps"] >= most or state["steps"] % self._env.num_envs:
            raise ValueError(f"the checkpoint is of step {state['steps']:,}, which this run does not have")

    def _restore(self, state: Mapping[str, Any]) -> None:
        agent, logger = self.agent, self.logger
        self._check(state)
        agent.set_training_state(state["agent"])
        observations = self._env.load_state_dict(state["environments"])
        if not np.array_equal(np.asarray(observations), np.asarray(agent._last_obs)):
            raise ValueError("the environments do not come back to where they were")
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        # The rollout that was under way is finished first: it lacks some of its steps.
        self._rollout_steps = state["rollout_steps"]
        agent.train_freq = self._train_freq._replace(frequency=self._train_freq.frequency - self._rollout_steps)
        pending: list[Any] = [logger.name_to_value, logger.name_to_excluded, logger.name_to_count]
        for ours, saved in zip(pending, state["metrics_pending"], strict=True):
            ours.update(saved)
        self.run.seconds = state["checkpoints_s"]
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        self.run.steps = agent.num_timesteps
        self._metrics.cut(state["metrics_length"])
