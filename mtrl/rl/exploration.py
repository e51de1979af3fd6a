"""Epsilon-greedy exploration, with an epsilon of its own for each column of the vector environment.

Before `learning_starts` steps the agent plays at random, whatever epsilon is: see `MultiTaskDQN._sample_action`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtrl.rl.settings import DQNSettings


class EpsilonGreedy:
    """Replaces greedy actions by random ones with a probability epsilon, and decides how large it is.

    Each environment has a coin of its own; `stable_baselines3.DQN` tosses one for the whole batch.

    Args:
        settings: the settings whose names begin with `exploration_`.
        counts: the number of columns of each task, (T,).
        num_actions: number of actions to choose from.
        generator: source of all random numbers here.

    Attributes:
        rates: present epsilon of each column, (N,), task after task.
    """

    def __init__(
        self,
        settings: DQNSettings,
        counts: Sequence[int],
        num_actions: int,
        generator: np.random.Generator,
    ) -> None:
        self.rates: NDArray[np.float64] = np.full(sum(counts), settings.exploration_initial_eps)
        self._settings = settings
        self._num_actions = num_actions
        self._generator = generator

    def explore(self, actions: NDArray[np.int64], counts: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Replace each action by a random one with probability epsilon.

        Args:
            actions: greedy actions. If there is one for each column, each column's own epsilon applies; otherwise the
                mean over the columns does.
            counts: how many actions there are to choose from, in the shape of `actions`. Default: all.
        """
        rates = self.rates if actions.shape == self.rates.shape else self.rates.mean()
        replaced = self._generator.random(actions.shape) < rates
        return np.where(replaced, self.random(actions.shape, counts), actions)

    def random(self, shape: tuple[int, ...], counts: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Random actions of this shape; for `counts` see `explore`."""
        return self._generator.integers(self._num_actions if counts is None else counts, size=shape)

    def schedule(self, counts: Sequence[int], remaining: float, episodes: int) -> None:
        """Set every epsilon for the next step.

        Epsilon falls linearly over `exploration_fraction` of training. If `exploration_decay` is given, epsilon is
        instead multiplied by it at the end of each episode, until it reaches its last value.

        Args:
            counts: the number of columns of each task, (T,).
            remaining: remaining share of training, from 1 to 0.
            episodes: number of finished episodes.
        """
        settings = self._settings
        first, last = settings.exploration_initial_eps, self._last_rates(counts)
        if settings.exploration_decay is None:
            done = (1 - remaining) / max(settings.exploration_fraction, 1e-12)
            self.rates = first + (last - first) * min(done, 1.0)
        else:
            self.rates = np.maximum(last, first * settings.exploration_decay**episodes)

    def _last_rates(self, counts: Sequence[int]) -> NDArray[np.float64]:
        """The last epsilon of each column, task after task: `final ** (1 + diversity * i / (K - 1))` for column i of K.

        This is the spread of Ape-X (Horgan et al. 2018, https://arxiv.org/abs/1803.00933). A task with a single column
        takes the middle of the range.
        """
        final, diversity = self._settings.exploration_final_eps, self._settings.exploration_diversity
        places = [column / (count - 1) if count > 1 else 0.5 for count in counts for column in range(count)]
        return np.array([final ** (1 + diversity * place) for place in places])
