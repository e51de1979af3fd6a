"""Weights that change while training: functions of the step, without state.

A schedule is called with the number of the step, from 0, and gives the weight; before and after its course it stays at
its first and last value. A resumed run needs nothing but its step.

    beta = Cyclical(0.0, 1.0, steps=10_000)
    aggregator.compute_losses(outputs, observations, beta=beta(step))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """Anything that gives a weight for a step."""

    def __call__(self, step: int) -> float:
        """The weight at `step`, from 0 on."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same weight at every step.

    Args:
        value: the weight.
    """

    value: float = 1.0

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        _progress(step, 1)
        return self.value


@dataclass(frozen=True)
class Linear:
    """From `start` at step 0 in equal steps to `end` at step `steps`, and `end` from there on.

    The warm-up of Bowman et al. (2016), https://arxiv.org/abs/1511.06349, and Sonderby et al. (2016),
    https://arxiv.org/abs/1602.02282.

    Args:
        start: weight at step 0.
        end: weight at step `steps`.
        steps: how many steps it takes, at least 1.

    Raises:
        ValueError: `steps` is below 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        """Check the range."""
        _check_steps(self.steps)

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        return _between(self.start, self.end, _progress(step, self.steps))


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine: end + (start - end)(1 + cos(pi step/steps))/2.

    Slow at both ends. The shape of Loshchilov and Hutter, "SGDR" (2017), https://arxiv.org/abs/1608.03983.

    Args:
        start: weight at step 0.
        end: weight from step `steps` on.
        steps: how many steps it takes, at least 1.

    Raises:
        ValueError: `steps` is below 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        """Check the range."""
        _check_steps(self.steps)

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        return _between(self.start, self.end, (1 - math.cos(math.pi * _progress(step, self.steps))) / 2)


@dataclass(frozen=True)
class Cyclical:
    """`cycles` times: from `start` to `end` in the first part of the cycle, `end` in the rest; `end` after the last.

    Cyclical annealing against a vanishing KL: Fu et al. (2019), https://arxiv.org/abs/1903.10145. With
    tau = (step mod steps/cycles)/(steps/cycles) the way from `start` to `end` is min(tau/ramp, 1).

    Args:
        start: weight at the beginning of each cycle.
        end: weight once it has risen.
        steps: of all cycles together, at least `cycles`.
        cycles: how many, at least 1. Default 4, the paper's.
        ramp: share of a cycle in which the weight changes, in (0, 1]. Default 0.5, the paper's.

    Raises:
        ValueError: an argument is out of range.
    """

    start: float
    end: float
    steps: int
    cycles: int = 4
    ramp: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_steps(self.steps)
        if not 1 <= self.cycles <= self.steps:
            raise ValueError(f"cycles is {self.cycles}; it must be between 1 and steps, {self.steps}")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp is {self.ramp}; it must be above 0 and at most 1")

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        progress = _progress(step, self.steps)
        # In whole numbers: a cycle begins at its step, however step/steps is rounded.
        tau = (step * self.cycles % self.steps) / self.steps if progress < 1 else 1.0
        return _between(self.start, self.end, min(tau / self.ramp, 1.0))


def _between(start: float, end: float, share: float) -> float:
    """`start` at share 0 and `end` at share 1, both exactly, and never outside them."""
    value = start + (end - start) * share if share < 1 else end
    return min(max(value, min(start, end)), max(start, end))


def _progress(step: int, steps: int) -> float:
    if step < 0:
        raise ValueError(f"step is {step}; it must be at least 0")
    return min(step / steps, 1.0)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
