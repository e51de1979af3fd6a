"""Whether methods differ: paired tests over seeds, their correction for many methods, and what they cannot find."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from experiments.analysis.arrays import Array, matrix
from experiments.analysis.intervals import Estimate, mean_estimate
from mtrl.limits import check_choice, check_number

ALPHA = 0.05  # the level of every test, which p has to be at or below to tell two methods apart

Test = Literal["t", "permutation"]


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline, over the seeds that both have."""

    seeds: tuple[int, ...]
    difference: Estimate  # method minus baseline
    p: float | None  # two-sided; None from one seed
    p_holm: float | None  # adjusted for all methods that were compared
    deviation: float | None  # standard deviation of the paired differences; None from one seed
    detectable: (
        float | None
    )  # true difference that p finds with power 0.8 at 0.05; after Holm's correction it is larger


def compare(
    methods: Mapping[str, Mapping[int, ArrayLike]],
    baseline: Mapping[int, ArrayLike],
    *,
    test: Test = "t",
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare each method with the baseline by paired differences of the mean over tasks, over their common seeds.

    To compare on one task or on the worst one, give rows that have this score alone.

    The interval and the default p are Student's on the differences d. They are exact for normal d, and conservative for
    the symmetric d of two methods that both fail at times: the measured rates of p < 0.05 without a true difference,
    for normal scores and for scores with 30 % failures, are .054 and .021 with 3 seeds, .057 and .028 with 5, .044 and
    .047 with 10. `"permutation"` flips signs of d (Fisher 1935) and is exact for any symmetric d. But its p is at least
    2^(1 - n), so 5 seeds cannot reach 0.05, nor can 9 seeds after Holm's correction for 13 methods, and it may then
    disagree with the interval.

    Args:
        methods: for each method, by seed: (tasks,) scores.
        baseline: by seed: (tasks,) scores, in the same unit and order.
        test: `"t"` or `"permutation"` (all 2^n signs up to 13 seeds, 9999 random ones above).
        confidence: the level of the interval, which is not adjusted for the number of methods.
        seed: the seed of the random signs.

    Returns:
        The comparisons by method, in the order given. A method with one common seed has a difference and nothing else.

    Raises:
        ValueError: a method has no seed in common with the baseline or has other tasks, or a score is not finite.
    """
    check_number("confidence", confidence, above=0, below=1)
    check_choice("test", test, ("t", "permutation"))
    differences: dict[str, Array] = {}
    common: dict[str, tuple[int, ...]] = {}
    for name, scores in methods.items():
        common[name] = tuple(sorted(scores.keys() & baseline.keys()))
        if not common[name]:
            raise ValueError(f"{name} has no seed in common with the baseline")
        ours = matrix([scores[i] for i in common[name]], f"scores of {name}")
        theirs = matrix([baseline[i] for i in common[name]], "baseline scores")
        if ours.shape != theirs.shape:
            raise ValueError(f"{name} has {ours.shape[1]} tasks and the baseline {theirs.shape[1]}")
        differences[name] = (ours - theirs).mean(1)

    p = {name: _paired_p(d, test, seed) for name, d in differences.items() if len(d) > 1}
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    comparisons = {}
    for name, d in differences.items():
        difference = mean_estimate(d, confidence)
        if name not in p:
            comparisons[name] = Comparison(common[name], difference, None, None, None, None)
            continue
        deviation = float(d.std(ddof=1))
        detectable = minimum_detectable_difference(deviation, len(d))
        comparisons[name] = Comparison(common[name], difference, p[name], float(adjusted[name]), deviation, detectable)
    return comparisons


def _paired_p(differences: Array, test: Test, seed: int) -> float:
    """Two-sided p of (n,) differences against a mean of 0."""
    if not differences.any():
        return 1.0  # both methods have the same scores: t would be 0 / 0
    if test == "permutation":
        result: Any = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", vectorized=True, rng=np.random.default_rng(seed)
        )
        return float(result.pvalue)
    n = len(differences)
    with np.errstate(divide="ignore"):  # where all differences are equal, t is infinite
        t = differences.mean() / (differences.std(ddof=1) / math.sqrt(n))
    return float(2 * stats.t.sf(abs(t), n - 1))


def holm(p: Sequence[float]) -> Array:
    """Holm's adjusted p-values.

    The k-th smallest of m p-values is multiplied by m - k + 1, and is then at least as large as the adjusted value
    before it and at most 1. Rejecting where the adjusted p is at most alpha keeps the chance of any false rejection at
    alpha, whatever the dependence between the tests (Holm 1979, https://www.jstor.org/stable/4615733).

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
    alpha: float = ALPHA,
    power: float = 0.8,
) -> float:
    """The true difference of means that a two-sided t-test would find significant with the given power.

    Smaller differences may exist all the same; the test would often miss them. The value is solved from the noncentral
    t distribution (Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences", chapter 2).

    Args:
        deviation: the standard deviation over seeds: of the paired differences, or, for an unpaired comparison, of the
            scores of either method.
        seeds: the number of pairs, or of the method's seeds.
        baseline_seeds: the number of the baseline's seeds, for an unpaired comparison. Default: paired.
        alpha: the chance of finding a difference where there is none. For Bonferroni's correction divide it by the
            number of methods.
        power: the chance of finding a difference that exists.

    Returns:
        A difference in the unit of the deviation.

    Raises:
        ValueError: there are fewer than 2 pairs or 1 + 2 seeds; the deviation is negative or infinite; alpha or power
            is not between 0 and 1; or the power is no larger than alpha, which needs no difference at all.
    """
    check_number("alpha", alpha, above=0, below=1)
    check_number("power", power, above=0, below=1)
    if power <= alpha:
        raise ValueError(f"power ({power:g}) must be larger than alpha ({alpha:g})")
    check_number("deviation", deviation, least=0)
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
        # The square of a noncentral t is a noncentral F, which has both tails in one; the far tail of SciPy 1.17's t is
        # NaN.
        return float(power - 1 + special.ncfdtr(1, freedom, shift**2, critical))

    high = math.sqrt(critical)
    while missing(high) > 0:
        high *= 2
    return float(optimize.brentq(missing, 0.0, high)) * scale * deviation
