"""Rewards of several steps in one transition."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Step(NamedTuple):
    """One step of N environments. At the end of an episode, the next observation is the last one of that episode."""

    observations: NDArray[Any]  # (N, O), rows of numbers or bytes
    next_observations: NDArray[Any]  # (N, O), rows of numbers or bytes
    actions: NDArray[Any]  # (N,), or (N, A)
    rewards: NDArray[np.float32]  # (N,)
    dones: NDArray[np.bool_]  # (N,), the episode ended here
    terminals: NDArray[np.bool_]  # (N,), the episode ended for good, and not by its time limit


class Transitions(NamedTuple):
    """A transition of each of N environments. The value of its first action is rewards + discounts * V(next)."""

    observations: NDArray[np.float32]  # (N, O)
    next_observations: NDArray[Any]  # (N, O)
    actions: NDArray[Any]  # (N,), or (N, A)
    rewards: NDArray[np.float32]  # (N,)
    discounts: NDArray[np.float32]  # (N,), 0 if the episode ended for good


class NStepReturns:
    """Turns steps into transitions over n steps, or over fewer at the end of an episode.

    The returns are not corrected for actions that the present policy would not have taken, as in Rainbow (Hessel et al.
    2018, https://arxiv.org/abs/1710.02298). With a small n and mostly greedy data the bias is small, and rewards travel
    back n times as fast.

    Args:
        n: steps per transition; 1 is the ordinary transition.
        gamma: discount per step.
    """

    def __init__(self, n: int, gamma: float) -> None:
        self.n = n
        self.gamma = gamma
        self._steps: deque[Step] = deque(maxlen=n)

    def add(self, step: Step) -> Transitions | None:
        """The transitions that begin n - 1 steps before `step`; None if fewer steps have been added."""
        self._steps.append(step)
        if len(self._steps) < self.n:
            return None
        first, *others = self._steps
        if not any(step.dones.any() for step in self._steps):  # the usual case: the same result with less work
            rewards = first.rewards
            for later, further in enumerate(others, 1):
                rewards = rewards + np.float32(self.gamma**later) * further.rewards
            discounts = np.full(len(rewards), self.gamma**self.n, np.float32)
            return Transitions(first.observations, self._steps[-1].next_observations, first.actions, rewards, discounts)
        rewards, following = first.rewards, first.next_observations
        discounts = np.float32(self.gamma) * ~first.terminals
        going = ~first.dones
        for later, further in enumerate(others, 1):
            rewards = rewards + np.float32(self.gamma**later) * (further.rewards * going)
            following = np.where(going[:, None], further.next_observations, following)
            discounts = np.where(going, np.float32(self.gamma ** (later + 1)) * ~further.terminals, discounts)
            going = going & ~further.dones
        return Transitions(first.observations, following, first.actions, rewards, discounts)

    def clear(self) -> None:
        """Forget unfinished transitions, because the environments have been reset."""
        self._steps.clear()

    def state_dict(self) -> dict[str, Any]:
        """The steps of transitions that are not complete."""
        return {"steps": [list(step) for step in self._steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._steps = deque((Step(*step) for step in state["steps"]), maxlen=self.n)
