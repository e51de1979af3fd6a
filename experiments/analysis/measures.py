"""What runs are measured by beside their mean return: normalised scores, performance profiles, sample efficiency."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from experiments.analysis.arrays import Array, matrix, vector
from experiments.analysis.intervals import Estimate, shares
from mtrl.limits import check_number


@dataclass(frozen=True)
class Profile:
    """A performance profile. Each array is (thresholds,); from one seed there is no interval."""

    thresholds: Array
    share: Array
    low: Array | None
    high: Array | None


@dataclass(frozen=True)
class SampleEfficiency:
    """Environment steps until a return was reached, over seeds."""

    seeds: int
    reached: int  # number of seeds that reached the return at all
    median: Estimate  # of steps; infinite where half of the seeds or more never reached the return


def normalise(scores: ArrayLike, random: ArrayLike, reference: ArrayLike) -> Array:
    """Scores on a scale from a random policy (0) to a reference (1), task by task.

    The two ends of the scale are taken as known: intervals of normalised scores leave their uncertainty out.

    Args:
        scores: (seeds, tasks).
        random: (tasks,), mean scores of a random policy.
        reference: (tasks,), scores of the reference, such as the independent agents.

    Returns:
        (seeds, tasks), without a unit.

    Raises:
        ValueError: an argument is not finite or has another shape, or on some task the reference is no better than
            random.
    """
    rows = matrix(scores)
    zero, one = vector(random, "random scores"), vector(reference, "reference scores")
    for end, name in ((zero, "random"), (one, "reference")):
        if len(end) != rows.shape[1]:
            raise ValueError(f"scores have {rows.shape[1]} tasks and {name} scores {len(end)}")
    worse = np.flatnonzero(one <= zero)
    if len(worse):
        task = worse[0]
        raise ValueError(f"task {task}: the reference ({one[task]:g}) must be above the random policy ({zero[task]:g})")
    return (rows - zero) / (one - zero)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike, *, confidence: float = 0.95) -> Profile:
    """Share of all seeds and tasks whose score is above each threshold (Agarwal et al. 2021, section 4.2).

    The intervals are over seeds and are those of `intervals.shares`. Each holds for its threshold alone, not for the
    curve as a whole.

    Args:
        scores: (seeds, tasks), in any unit.
        thresholds: (K,), in the same unit.
        confidence: the level of the interval at each threshold.

    Raises:
        ValueError: the scores or thresholds are not finite or have a wrong shape, or the confidence is out of range.
    """
    rows, levels = matrix(scores), vector(thresholds, "thresholds")
    above = (rows[:, :, None] > levels).mean(1)  # (seeds, K)
    estimates = shares(above, confidence)
    low, high = (None, None) if len(rows) == 1 else np.array([estimate.interval for estimate in estimates]).T
    return Profile(levels, above.mean(0), low, high)


def steps_to_reach(steps: ArrayLike, returns: ArrayLike, threshold: float) -> float:
    """The first environment step at which a learning curve is at `threshold` or above; infinite if it never is.

    The curve is taken as it was logged. It is neither smoothed nor interpolated between evaluations.

    Args:
        steps: (P,) environment steps, in order.
        returns: (P,) the curve at these steps.
        threshold: a return, in the unit of the curve.

    Raises:
        ValueError: a number is not finite, the lengths differ, or the steps are out of order.
    """
    x, y = vector(steps, "steps"), vector(returns, "returns")
    if len(x) != len(y):
        raise ValueError(f"a curve needs as many returns as steps, got {len(y)} and {len(x)}")
    if (np.diff(x) < 0).any():
        raise ValueError("steps must be in order")
    check_number("threshold", threshold)
    reached = y >= threshold
    return float(x[reached.argmax()]) if reached.any() else math.inf


def sample_efficiency(steps: ArrayLike, *, confidence: float = 0.95) -> SampleEfficiency:
    """Median over seeds of the steps until a return was reached; a seed that never reached it counts as infinity.

    A mean would have to leave those seeds out and so reward failing; a median needs only the order of the seeds. The
    ends of its interval are two of the sorted values (binomial, for any distribution; Conover 1999, "Practical
    Nonparametric Statistics", section 3.2), and the upper end may be infinite. With 5 seeds or fewer there is no
    interval: even the whole range of 5 values covers the median with a probability of 94 % at most.

    Args:
        steps: (seeds,) values of `steps_to_reach`: environment steps, or infinity.
        confidence: the level of the interval.

    Raises:
        ValueError: there is no seed, a number of steps is NaN or negative, or the confidence is out of range.
    """
    values = np.asarray(steps, dtype=np.float64)
    check_number("confidence", confidence, above=0, below=1)
    if values.ndim != 1 or not len(values) or not (values >= 0).all():
        raise ValueError("steps must be a list with one number per seed, infinity for never")
    low, high = stats.quantile_test(values, p=0.5).confidence_interval(confidence_level=confidence)
    median = float(np.median(values))
    if math.isnan(low) or math.isnan(high):
        estimate = Estimate(median)
    else:
        estimate = Estimate(median, (float(low), float(high)), "order statistics")
    return SampleEfficiency(len(values), int(np.isfinite(values).sum()), estimate)
