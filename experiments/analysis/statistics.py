"""Comparing methods over seeds: estimates with intervals, tests, and what a number of seeds cannot tell.

Seeds are the replicates (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264). A method's scores are a matrix
(seeds, tasks) whose entries are means of a seed's greedy episodes of a task. All functions are pure; those that draw
random numbers take a `seed`. Confidence is 0.95 and two-sided unless told otherwise.

**What is resampled.** A seed's tasks come out of one training run of one network, so a row of the matrix is one draw:
seeds are resampled with all their tasks. To resample each task's column alone, as rliable does, supposes that a seed
that fails one task is no likelier to fail another. At a correlation of 0.7 between tasks and 10 seeds such intervals
for the mean over tasks covered the truth in 83 % of the draws instead of 95 %. Where tasks are in fact independent,
as for independent agents, whole rows stay right (95 %) and give no wider intervals, so there is no option. The strata
are the methods: each one's seeds are resampled, or enter a standard error, on their own.

**Which interval.** How often nominal 95 % intervals of the mean / the interquartile mean (IQM) of 10 seeds covered the
truth in 1000 draws of one column: normal scores; N(240, 20) mixed with 30 % of failed seeds N(80, 30); log-normal ones
of sigma 0.75.

| 10 seeds            | normal    | failures  | log-normal |
| ------------------- | --------- | --------- | ---------- |
| percentile          | .91 / .94 | .90 / .93 | .84 / .93  |
| basic               | .91 / .89 | .85 / .73 | .83 / .86  |
| BCa                 | .90 / .94 | .94 / .93 | .85 / .93  |
| studentized         | .95 / .96 | .97 / .89 | .93 / .95  |
| expanded percentile | .95 / .97 | .95 / .96 | .89 / .97  |

The expanded percentile interval (Hesterberg 2015, https://doi.org/10.1080/00031305.2015.1089789) takes its quantiles so
far out that, for a mean of normal scores, it is as wide as Student's. It is used from 7 seeds on. With fewer, resamples
cannot reach beyond the few values there are (of normal scores' means it covers .93 with 5 seeds and .75 with 3), and
the interval is Student's: t times the bootstrap's standard error over all n^n resamples, for a mean s / sqrt(n).
Coverage of what is used, 2000 draws:

| seeds           | 3         | 5         | 7         | 10        | 20        |
| --------------- | --------- | --------- | --------- | --------- | --------- |
| normal          | .95 / .95 | .95 / .98 | .94 / .96 | .95 / .97 | .95 / .96 |
| 30 % failures   | .77 / .91 | .83 / .92 | .92 / .94 | .95 / .96 | .96 / .97 |
| log-normal      | .90 / .94 | .89 / .97 | .89 / .96 | .90 / .97 | .92 / .96 |

No interval knows of failures that no seed has shown: where 15 % of seeds fail, this one of the mean covers .80 with 10
seeds and .92 with 20, and none of the others above .84 with 10. One seed has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

Array = NDArray[np.float64]
Statistic = Literal["mean", "iqm"]
Kind = Literal["bootstrap", "t", "logit t", "bounds", "order statistics"]

BOOTSTRAP_SEEDS = 7
"""Fewest seeds for which an interval's ends are quantiles of resamples; see the module's table."""


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval, in the unit of what was summarised."""

    value: float
    interval: tuple[float, float] | None = None  # none from one seed
    kind: Kind | None = None  # how the interval was made


@dataclass(frozen=True)
class Summary:
    """Estimates for one method."""

    seeds: int
    tasks: tuple[Estimate, ...]  # in the order of the columns
    overall: Estimate  # over all tasks
    worst: Estimate  # of each seed's lowest task, which need not be the same one


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline, over the seeds that both have."""

    seeds: tuple[int, ...]
    difference: Estimate  # method minus baseline
    p: float | None  # two-sided; none from one seed
    p_holm: float | None  # adjusted for all methods that were compared
    deviation: float | None  # standard deviation of the paired differences; none from one seed
    detectable: float | None  # true difference that p would find with power 0.8 at 0.05; after Holm it takes more


@dataclass(frozen=True)
class Profile:
    """A performance profile, each array (thresholds,); without an interval if there is one seed."""

    thresholds: Array
    share: Array
    low: Array | None
    high: Array | None


@dataclass(frozen=True)
class SampleEfficiency:
    """Environment steps to a threshold, over seeds."""

    seeds: int
    reached: int  # seeds that came there at all
    median: Estimate  # of steps; infinite where half of the seeds or more never came there


def summarise(
    scores: ArrayLike,
    statistic: Statistic = "mean",
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Summary:
    """Mean or interquartile mean of each task, over all tasks, and of the worst task, with intervals.

    The IQM sorts N values, leaves out the lowest and the highest int(0.25 N), and averages the rest: the N = seeds
    scores of a task, all N = seeds * tasks scores together for `overall` (as in Agarwal et al. 2021), and the N = seeds
    lowest scores for `worst`. Of three values none is left out.

    Args:
        scores: (seeds, tasks), in any unit.
        statistic: `"mean"` or `"iqm"`.
        confidence: of each interval alone.
        resamples: how many bootstrap resamples from `BOOTSTRAP_SEEDS` seeds on.
        seed: of the resampling.

    Raises:
        ValueError: scores are no finite matrix, or an argument is out of range.
    """
    matrix = _matrix(scores)
    if statistic not in _AVERAGES:
        raise ValueError(f"unknown statistic {statistic!r}; choose from {', '.join(_AVERAGES)}")
    average = _AVERAGES[statistic]

    def aggregates(samples: Array) -> Array:  # (R, seeds, tasks) -> (R, tasks + 2)
        joint = average(samples.reshape(len(samples), -1))
        return np.column_stack([average(samples), joint, average(samples.min(2))])

    *tasks, overall, worst = bootstrap(matrix, aggregates, confidence=confidence, resamples=resamples, seed=seed)
    return Summary(len(matrix), tuple(tasks), overall, worst)


def bootstrap(
    scores: ArrayLike,
    statistic: Callable[[Array], Array],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Estimate]:
    """K statistics of a score matrix, each with an interval from resampled seeds; the module says which and why.

    Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapters 12-13; Hesterberg 2015 for the quantiles.

    Args:
        scores: (seeds, tasks), in any unit.
        statistic: maps R matrices (R, seeds, tasks) to (R, K).
        confidence: of each interval alone.
        resamples: how many resamples from `BOOTSTRAP_SEEDS` seeds on; fewer seeds have all n^n of them.
        seed: of the resampling.

    Raises:
        ValueError: scores are no finite matrix, or an argument is out of range.
    """
    matrix = _matrix(scores)
    _check_share("confidence", confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    seeds = len(matrix)
    values = statistic(matrix[None])[0]  # (K,)
    if seeds == 1:
        return [Estimate(float(value)) for value in values]

    # The variance of resamples falls short by (n - 1) / n, and their means have normal tails where t's are due.
    quantile = math.sqrt(seeds / (seeds - 1)) * stats.t.ppf((1 + confidence) / 2, seeds - 1)
    kind: Kind
    if seeds < BOOTSTRAP_SEEDS:
        rows = np.indices((seeds,) * seeds).reshape(seeds, -1).T  # (n^n, n)
        half = quantile * statistic(matrix[rows]).std(0)
        low, high, kind = values - half, values + half, "t"
    else:
        rows = np.random.default_rng(seed).integers(seeds, size=(resamples, seeds))
        tail = stats.norm.cdf(-quantile)
        low, high = np.quantile(statistic(matrix[rows]), [tail, 1 - tail], axis=0)
        kind = "bootstrap"
    return _estimates(values, low, high, kind)


def means(values: ArrayLike, *, confidence: float = 0.95) -> tuple[Array, Array | None]:
    """Mean over seeds of each column and half the width of its interval, Student's: for curves, many columns at once.

    An interval holds for its column alone, not for the curve as a whole.

    Args:
        values: (seeds, K), in any unit.
        confidence: of each interval.

    Returns:
        (K,) means, and (K,) half widths or, from one seed, none.

    Raises:
        ValueError: values are no finite matrix, or confidence is out of range.
    """
    matrix = _matrix(values, "values")
    _check_share("confidence", confidence)
    n, mean = len(matrix), matrix.mean(0)
    if n == 1:
        return mean, None
    half: Array = stats.t.ppf((1 + confidence) / 2, n - 1) * matrix.std(0, ddof=1) / math.sqrt(n)
    return mean, half


def success_rates(rates: ArrayLike, *, confidence: float = 0.95) -> Summary:
    """Success rate of each task, over all tasks, and of the worst task, with intervals over seeds.

    An episode succeeds with a return of at least 200. Intervals are Student's on the scale of log odds, which keeps
    them within 0 and 1; their measured coverage at 10 seeds is .91 to .98 for beta-distributed rates of 5 % to 90 % (a
    bootstrap's: .85 to .97). Where all seeds have the same rate c there is no spread to go by, and the interval is the
    one that holds for any distribution on [0, 1]: by Markov's inequality, a mean of theta has all of n values at c or
    above with probability (theta / c)^n at most, so theta >= c (alpha / 2)^(1/n), and likewise from above. Ten seeds
    that all fail leave rates of up to 31 % possible.

    Args:
        rates: (seeds, tasks), the share of a seed's episodes that succeeded.
        confidence: of each interval alone.

    Raises:
        ValueError: rates are no finite matrix of numbers between 0 and 1, or confidence is out of range.
    """
    matrix = _matrix(rates, "rates")
    if matrix.min() < 0 or matrix.max() > 1:
        raise ValueError(f"rates must lie between 0 and 1, got {matrix.min():g} to {matrix.max():g}")
    columns = np.column_stack([matrix, matrix.mean(1), matrix.min(1)])
    *tasks, overall, worst = _shares(columns, confidence)
    return Summary(len(matrix), tuple(tasks), overall, worst)


def probability_of_improvement(scores: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 of a run X of a method and a run Y of the baseline, averaged over tasks.

    For each task the Mann-Whitney statistic U / (n m). The standard error takes the two methods' seeds as independent
    samples and a seed's tasks together (DeLong et al. 1988, with the degrees of freedom of Brunner & Munzel 2000); the
    interval is Student's on the scale of log odds. Without any spread (often, where every seed of one beats every seed
    of the other) it is the interval of `success_rates`, of the smaller number of seeds. Measured coverage, of normal
    scores and of ones with 30 % failures, independent and correlated tasks, true values of 0.5 to 0.96: .96 to .99 with
    10 seeds, .97 to .99 with 5, .99 and more with 3. A bootstrap covered .87 to .99, .67 to .99 and .41 to .94: its
    interval is empty where the methods are separated.

    Args:
        scores: (n seeds, tasks) of the method.
        baseline: (m seeds, tasks) of the baseline, in the same unit; rows need not match.
        confidence: of the interval.

    Returns:
        A probability; without an interval if either has one seed.

    Raises:
        ValueError: a matrix is not finite, tasks differ in number, or confidence is out of range.
    """
    x, y = _matrix(scores), _matrix(baseline, "baseline scores")
    _check_share("confidence", confidence)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"scores have {x.shape[1]} tasks and baseline scores {y.shape[1]}")
    wins = (np.sign(x[:, None] - y[None]).mean(2) + 1) / 2  # (n, m), mean over tasks
    n, m = wins.shape
    value = wins.mean()
    if min(n, m) == 1:
        return Estimate(float(value))
    of_x, of_y = wins.mean(1).var(ddof=1) / n, wins.mean(0).var(ddof=1) / m
    variance = of_x + of_y
    freedom = variance**2 / (of_x**2 / (n - 1) + of_y**2 / (m - 1)) if variance > 0 else 1.0
    mean, error, lowest, highest = np.reshape([value, math.sqrt(variance), wins.min(), wins.max()], (4, 1))
    return _share_estimates(mean, error, freedom, lowest, highest, min(n, m), confidence)[0]


def normalise(scores: ArrayLike, random: ArrayLike, reference: ArrayLike) -> Array:
    """Scores on the scale from a random policy (0) to the independent agents (1), task by task.

    The two ends count as known: intervals of normalised scores leave their uncertainty out.

    Args:
        scores: (seeds, tasks).
        random: (tasks,), mean scores of a random policy.
        reference: (tasks,), mean scores of the independent agents.

    Returns:
        (seeds, tasks), without a unit.

    Raises:
        ValueError: something is not finite or of another shape, or the reference is no better than random in a task.
    """
    matrix = _matrix(scores)
    zero, one = (_vector(end, name) for end, name in ((random, "random scores"), (reference, "reference scores")))
    for end, name in ((zero, "random"), (one, "reference")):
        if len(end) != matrix.shape[1]:
            raise ValueError(f"scores have {matrix.shape[1]} tasks and {name} scores {len(end)}")
    worse = np.flatnonzero(one <= zero)
    if len(worse):
        task = worse[0]
        raise ValueError(f"task {task}: the reference ({one[task]:g}) must be above the random policy ({zero[task]:g})")
    return (matrix - zero) / (one - zero)


def compare(
    methods: Mapping[str, Mapping[int, ArrayLike]],
    baseline: Mapping[int, ArrayLike],
    *,
    test: Literal["t", "permutation"] = "t",
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Each method against the baseline: paired differences of the mean over tasks, over common seeds.

    For one task or the worst one, give rows of that score alone. The interval and the default p are Student's on the
    differences d, exact for normal d and on the safe side for the symmetric d of two methods that both fail at times:
    measured rates of p < 0.05 without a difference, for normal scores and for ones with 30 % failures, are .054 and
    .021 with 3 seeds, .057 and .028 with 5, .044 and .047 with 10. `"permutation"` flips signs of d (Fisher 1935):
    exact for any symmetric d. But its p is at least 2^(1 - n), so that 5 seeds cannot reach 0.05, nor 9 after Holm's
    correction for 13 methods, and it may then disagree with the interval.

    Args:
        methods: for each method, by seed: (tasks,) scores.
        baseline: by seed: (tasks,) scores, in the same unit and order.
        test: `"t"` or `"permutation"` (all 2^n signs up to 13 seeds, 9999 random ones above).
        confidence: of the interval, which is not adjusted for the number of methods.
        seed: of the random signs.

    Returns:
        By method, in the order given. Methods with one common seed have a difference and nothing else.

    Raises:
        ValueError: a method has no seed in common with the baseline, or other tasks; something is not finite.
    """
    _check_share("confidence", confidence)
    if test not in ("t", "permutation"):
        raise ValueError(f"unknown test {test!r}; choose from t, permutation")
    differences: dict[str, Array] = {}
    common: dict[str, tuple[int, ...]] = {}
    for name, scores in methods.items():
        common[name] = tuple(sorted(scores.keys() & baseline.keys()))
        if not common[name]:
            raise ValueError(f"{name} has no seed in common with the baseline")
        ours = _matrix([scores[i] for i in common[name]], f"scores of {name}")
        theirs = _matrix([baseline[i] for i in common[name]], "baseline scores")
        if ours.shape != theirs.shape:
            raise ValueError(f"{name} has {ours.shape[1]} tasks and the baseline {theirs.shape[1]}")
        differences[name] = (ours - theirs).mean(1)

    p = {name: _paired_p(d, test, seed) for name, d in differences.items() if len(d) > 1}
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    comparisons = {}
    for name, d in differences.items():
        if len(d) == 1:
            comparisons[name] = Comparison(common[name], Estimate(float(d[0])), None, None, None, None)
            continue
        deviation = float(d.std(ddof=1))
        comparisons[name] = Comparison(
            seeds=common[name],
            difference=_student(d, confidence),
            p=p[name],
            p_holm=float(adjusted[name]),
            deviation=deviation,
            detectable=minimum_detectable_difference(deviation, len(d)),
        )
    return comparisons


def holm(p: Sequence[float]) -> Array:
    """Holm's adjusted p-values: the k-th smallest of m times m - k + 1, at least the one before and at most 1.

    Rejecting where the adjusted p is at most alpha keeps the chance of any false rejection at alpha, whatever the
    dependence between the tests (Holm 1979, https://www.jstor.org/stable/4615733).

    Args:
        p: (m,) p-values; m may be 0.

    Returns:
        (m,), in the order given.

    Raises:
        ValueError: a p-value is not between 0 and 1.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values must be a list of numbers between 0 and 1")
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return np.minimum(adjusted, 1.0)


def minimum_detectable_difference(
    deviation: float,
    seeds: int,
    baseline_seeds: int | None = None,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """The true difference of means that a two-sided t-test would find significant with the given power.

    Smaller differences may well be there: the table cannot tell. Solved from the noncentral t distribution (Cohen 1988,
    "Statistical Power Analysis for the Behavioral Sciences", chapter 2).

    Args:
        deviation: standard deviation over seeds: of the paired differences, or, unpaired, of either method's scores.
        seeds: number of pairs, or of the method's seeds.
        baseline_seeds: of the baseline, for an unpaired comparison. Default: paired.
        alpha: chance of finding a difference where there is none; divide by the number of methods for Bonferroni's.
        power: chance of finding one that is there.

    Returns:
        A difference in the unit of the deviation.

    Raises:
        ValueError: fewer than 2 pairs or 1 + 2 seeds, a negative or infinite deviation, alpha or power not between 0
            and 1, or a power that is no larger than alpha, which needs no difference at all.
    """
    _check_share("alpha", alpha)
    _check_share("power", power)
    if power <= alpha:
        raise ValueError(f"power ({power:g}) must be larger than alpha ({alpha:g})")
    if not 0 <= deviation < math.inf:
        raise ValueError(f"the deviation must be finite and not negative, got {deviation:g}")
    if baseline_seeds is None:
        freedom, scale = seeds - 1, math.sqrt(1 / seeds) if seeds > 0 else math.nan
    else:
        freedom = seeds + baseline_seeds - 2
        scale = math.sqrt(1 / seeds + 1 / baseline_seeds) if min(seeds, baseline_seeds) > 0 else math.nan
    if freedom < 1 or math.isnan(scale):
        raise ValueError("a detectable difference needs at least 2 pairs of seeds, or 1 seed against 2")
    critical = stats.f.ppf(1 - alpha, 1, freedom)

    def missing(shift: float) -> float:
        """Power that is missing at a difference of `shift` standard errors."""
        # The square of a noncentral t is a noncentral F, with both tails in one; scipy 1.17 has NaN in t's far tail.
        return float(power - 1 + special.ncfdtr(1, freedom, shift**2, critical))

    high = math.sqrt(critical)
    while missing(high) > 0:
        high *= 2
    return float(optimize.brentq(missing, 0.0, high)) * scale * deviation


def performance_profile(scores: ArrayLike, thresholds: ArrayLike, *, confidence: float = 0.95) -> Profile:
    """Share of all seeds and tasks whose score is above each threshold (Agarwal et al. 2021, section 4.2).

    Intervals are over seeds and hold for each threshold alone, not for the curve as a whole; they are made as in
    `success_rates`.

    Args:
        scores: (seeds, tasks), in any unit.
        thresholds: (K,), in the same unit.
        confidence: of the interval at each threshold.

    Raises:
        ValueError: scores or thresholds are not finite or have a wrong shape, or confidence is out of range.
    """
    matrix, levels = _matrix(scores), _vector(thresholds, "thresholds")
    above = (matrix[:, :, None] > levels).mean(1)  # (seeds, K)
    estimates = _shares(above, confidence)
    low, high = (None, None) if len(matrix) == 1 else np.array([estimate.interval for estimate in estimates]).T
    return Profile(levels, above.mean(0), low, high)


def steps_to_reach(steps: ArrayLike, returns: ArrayLike, threshold: float) -> float:
    """The first environment step at which a learning curve is at `threshold` or above; infinite if it never is.

    The curve is taken as logged: neither smoothed nor interpolated between evaluations.

    Args:
        steps: (P,) environment steps, in order.
        returns: (P,) the curve at these steps.
        threshold: in the unit of the curve; usual are 50, 100, 150 and 200.

    Raises:
        ValueError: something is not finite, lengths differ, or steps are out of order.
    """
    x, y = _vector(steps, "steps"), _vector(returns, "returns")
    if len(x) != len(y):
        raise ValueError(f"a curve needs as many returns as steps, got {len(y)} and {len(x)}")
    if (np.diff(x) < 0).any():
        raise ValueError("steps must be in order")
    if not math.isfinite(threshold):
        raise ValueError(f"the threshold must be finite, got {threshold:g}")
    reached = y >= threshold
    return float(x[reached.argmax()]) if reached.any() else math.inf


def sample_efficiency(steps: ArrayLike, *, confidence: float = 0.95) -> SampleEfficiency:
    """Median over seeds of the steps to a threshold, seeds that never came there counted as infinity.

    A mean would have to leave those seeds out and so reward failing; a median needs only their order. Its interval is
    between two of the sorted values (binomial, for any distribution; Conover 1999, "Practical Nonparametric
    Statistics", section 3.2) and may end at infinity. 5 seeds and fewer have none: even their whole range covers the
    median with 94 % at most.

    Args:
        steps: (seeds,) of `steps_to_reach`: environment steps, or infinity.
        confidence: of the interval.

    Raises:
        ValueError: no seed, a NaN or a negative number of steps, or confidence is out of range.
    """
    values = np.asarray(steps, dtype=np.float64)
    _check_share("confidence", confidence)
    if values.ndim != 1 or not len(values) or not (values >= 0).all():
        raise ValueError("steps must be a list with one number per seed, infinity for never")
    low, high = stats.quantile_test(values, p=0.5).confidence_interval(confidence_level=confidence)
    median = float(np.median(values))
    if math.isnan(low) or math.isnan(high):
        estimate = Estimate(median)
    else:
        estimate = Estimate(median, (float(low), float(high)), "order statistics")
    return SampleEfficiency(len(values), int(np.isfinite(values).sum()), estimate)


_AVERAGES: dict[str, Callable[[Array], Any]] = {  # over the second axis
    "mean": partial(np.mean, axis=1),
    "iqm": partial(stats.trim_mean, proportiontocut=0.25, axis=1),
}


def _matrix(scores: Any, name: str = "scores") -> Array:
    """A float64 matrix (seeds, tasks), neither empty nor with NaN or infinity."""
    return _finite(scores, name, 2, "a matrix (seeds, tasks)")


def _vector(values: ArrayLike, name: str) -> Array:
    """A float64 vector, neither empty nor with NaN or infinity."""
    return _finite(values, name, 1, "a list of numbers")


def _finite(values: Any, name: str, dimensions: int, form: str) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):  # rows of unequal length, or no numbers
        raise ValueError(f"{name} must be {form} with as many numbers in each row") from None
    if array.ndim != dimensions or not array.size:
        raise ValueError(f"{name} must be {form}, got the shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} have NaN or infinity at index {np.argwhere(~np.isfinite(array))[0].tolist()}")
    return array


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value:g}")


def _estimates(values: Array, low: Array, high: Array, kind: Kind) -> list[Estimate]:
    rows = zip(values, low, high, strict=True)
    return [Estimate(float(value), (float(below), float(above)), kind) for value, below, above in rows]


def _student(values: Array, confidence: float) -> Estimate:
    """Mean of (n,) values with Student's interval; n > 1."""
    (mean,), half = means(values[:, None], confidence=confidence)
    assert half is not None
    return Estimate(float(mean), (float(mean - half[0]), float(mean + half[0])), "t")


def _paired_p(differences: Array, test: str, seed: int) -> float:
    """Two-sided p of (n,) differences with mean 0."""
    if not differences.any():
        return 1.0  # the same runs: t would be 0 / 0
    if test == "permutation":
        result: Any = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", vectorized=True, rng=np.random.default_rng(seed)
        )
        return float(result.pvalue)
    n = len(differences)
    with np.errstate(divide="ignore"):  # all differences equal
        t = differences.mean() / (differences.std(ddof=1) / math.sqrt(n))
    return float(2 * stats.t.sf(abs(t), n - 1))


def _shares(values: Array, confidence: float) -> list[Estimate]:
    """Means over seeds of (seeds, K) numbers between 0 and 1, with intervals."""
    _check_share("confidence", confidence)
    seeds, means = len(values), values.mean(0)
    if seeds == 1:
        return [Estimate(float(mean)) for mean in means]
    errors = values.std(0, ddof=1) / math.sqrt(seeds)
    return _share_estimates(means, errors, seeds - 1, values.min(0), values.max(0), seeds, confidence)


def _share_estimates(
    means: Array, errors: Array, freedom: float, lowest: Array, highest: Array, seeds: int, confidence: float
) -> list[Estimate]:
    """(K,) means of numbers between 0 and 1 with intervals that stay there; `success_rates` has the reasoning."""
    flat = errors < 1e-9  # but for rounding, no spread
    inner = np.where(flat, 0.5, means)
    half = stats.t.ppf((1 + confidence) / 2, freedom) * errors / (inner * (1 - inner))  # d logit(x) = dx / (x (1 - x))
    factor = ((1 - confidence) / 2) ** (1 / seeds)
    low = np.where(flat, lowest * factor, special.expit(special.logit(inner) - half))
    high = np.where(flat, 1 - (1 - highest) * factor, special.expit(special.logit(inner) + half))
    return [
        Estimate(float(mean), (float(below), float(above)), "bounds" if no_spread else "logit t")
        for mean, below, above, no_spread in zip(means, low, high, flat, strict=True)
    ]
