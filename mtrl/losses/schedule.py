"""Weights that change during training, as functions of the step.

A schedule is called with the number of the step, counted from 0, and returns the weight. After its last step the weight
stays constant. A schedule has no state, so that a resumed run needs only the number of its step.

    beta = Cyclical(0.0, 1.0, steps=10_000)
    aggregator.compute_losses(outputs, observations, beta=beta(step))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from mtrl.limits import check_number


class Schedule(Protocol):
    """A function from the number of a step to a weight."""

    def __call__(self, step: int) -> float:
        """The weight at `step`, which is counted from 0."""
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
    """A straight line from `start` at step 0 to `end` at step `steps`, and `end` from there on.

    The warm-up of Bowman et al. (2016), https://arxiv.org/abs/1511.06349, and Sonderby et al. (2016),
    https://arxiv.org/abs/1602.02282.

    Args:
        start: the weight at step 0.
        end: the weight from step `steps` on.
        steps: the number of steps from `start` to `end`, at least 1.

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
    """Half a cosine from `start` to `end`: end + (start - end)(1 + cos(pi step/steps))/2.

    It changes slowly at both ends. The shape of Loshchilov and Hutter, "SGDR" (2017), https://arxiv.org/abs/1608.03983.

    Args:
        start: the weight at step 0.
        end: the weight from step `steps` on.
        steps: the number of steps from `start` to `end`, at least 1.

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
    """In each cycle the weight moves from `start` to `end` and then stays; after the last cycle it stays at `end`.

    This is cyclical annealing against a vanishing KL: Fu et al. (2019), https://arxiv.org/abs/1903.10145. With
    tau = (step mod steps/cycles)/(steps/cycles), the weight is start + (end - start) min(tau/ramp, 1).

    Args:
        start: the weight at the beginning of each cycle.
        end: the weight at the end of each cycle.
        steps: the number of steps of all cycles together, at least `cycles`.
        cycles: the number of cycles, at least 1. Default 4, as in the paper.
        ramp: the share of a cycle in which the weight changes, in (0, 1]. Default 0.5, as in the paper.

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
        check_number("ramp", self.ramp, above=0, most=1)

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        progress = _progress(step, self.steps)
        # The modulo is taken of whole numbers, so that no rounding error moves the beginning of a cycle.
        tau = (step * self.cycles % self.steps) / self.steps if progress < 1 else 1.0
        return _between(self.start, self.end, min(tau / self.ramp, 1.0))


def _between(start: float, end: float, share: float) -> float:
    """The weight at `share` of the way from `start` to `end`: exact at both ends, and never beyond them."""
    value = start + (end - start) * share if share < 1 else end
    return min(max(value, min(start, end)), max(start, end))


def _progress(step: int, steps: int) -> float:
    check_number("step", step, least=0)
    return min(step / steps, 1.0)


def _check_steps(steps: int) -> None:
    check_number("steps", steps, least=1, whole=True)
