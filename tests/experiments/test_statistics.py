"""Statistics against closed forms, scipy's own, invariances, and how often intervals cover the truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from experiments.analysis.intervals import (
    BOOTSTRAP_SEEDS,
    Estimate,
    bootstrap,
    means,
    probability_of_improvement,
    success_rates,
    summarise,
)
from experiments.analysis.measures import normalise, performance_profile, sample_efficiency, steps_to_reach
from experiments.analysis.significance import compare, holm, minimum_detectable_difference

FAILURES = 0.3  # share of seeds that fail in `with_failures`


def normal(rng, shape):
    return rng.normal(150, 40, shape)


def with_failures(rng, shape):
    """A mixture of two returns, as of agents that land or only hover."""
    return np.where(rng.random(shape) < FAILURES, rng.normal(80, 30, shape), rng.normal(240, 20, shape))


def correlated(rng, seeds, tasks=3, correlation=0.7):
    """Normal scores whose tasks share what is particular to a seed."""
    own = rng.normal(size=(seeds, tasks))
    return np.array([220, 150, 60]) + 40 * (
        math.sqrt(correlation) * rng.normal(size=(seeds, 1)) + math.sqrt(1 - correlation) * own
    )


def scores(seeds=10, seed=0):
    return correlated(np.random.default_rng(seed), seeds)


def estimates(summary):
    return [*summary.tasks, summary.overall, summary.worst]


def covers(estimate, truth):
    low, high = estimate.interval
    return low <= truth <= high


def in_unit(factor, offset, estimate):
    """The estimate after a change of unit."""
    low, high = estimate.interval
    return factor * np.array([estimate.value, low, high]) + offset


def numbers(estimate):
    return np.array([estimate.value, *estimate.interval])


class TestSummarise:
    def test_values(self):
        x = scores()
        means, middles = summarise(x), summarise(x, "iqm")
        assert [task.value for task in means.tasks] == pytest.approx(x.mean(0))
        assert means.overall.value == pytest.approx(x.mean())
        assert means.worst.value == pytest.approx(x.min(1).mean())
        assert [task.value for task in middles.tasks] == pytest.approx(np.sort(x, 0)[2:8].mean(0))  # int(2.5) cut off
        assert middles.overall.value == pytest.approx(np.sort(x, None)[7:23].mean())  # int(7.5) of all 30
        assert middles.worst.value == pytest.approx(np.sort(x.min(1))[2:8].mean())
        assert means.seeds == 10

    @pytest.mark.parametrize("seeds", range(2, BOOTSTRAP_SEEDS))
    def test_few_seeds_have_students_interval_of_a_mean(self, seeds):
        x = scores(seeds)
        for values, estimate in zip([*x.T, x.mean(1), x.min(1)], estimates(summarise(x)), strict=True):
            assert estimate.kind == "t"
            expected = stats.t.interval(0.95, seeds - 1, values.mean(), stats.sem(values))
            assert estimate.interval == pytest.approx(expected)

    @pytest.mark.parametrize("seeds", [BOOTSTRAP_SEEDS, 10, 40])
    def test_of_a_mean_of_many_the_bootstraps_is_near_students(self, seeds):
        values = np.random.default_rng(0).normal(size=(seeds, 1))
        estimate = summarise(values, resamples=100_000).overall
        assert estimate.kind == "bootstrap"
        expected = np.diff(stats.t.interval(0.95, seeds - 1, 0, stats.sem(values[:, 0])))
        assert np.diff(estimate.interval) == pytest.approx(expected, rel=0.12)

    @pytest.mark.parametrize("statistic", ["mean", "iqm"])
    def test_one_seed_has_no_interval(self, statistic):
        for estimate in estimates(summarise([[100, 50, 0]], statistic)):
            assert estimate.interval is None
            assert estimate.kind is None
        assert summarise([[100, 50, 0]]).worst.value == 0

    @pytest.mark.parametrize("statistic", ["mean", "iqm"])
    @pytest.mark.parametrize("seeds", [3, 10])
    def test_follows_shifts_and_changes_of_unit(self, statistic, seeds):
        x = scores(seeds)
        moved = summarise(2 * x - 100, statistic)
        for before, after in zip(estimates(summarise(x, statistic)), estimates(moved), strict=True):
            assert numbers(after) == pytest.approx(in_unit(2, -100, before))

    @pytest.mark.parametrize("statistic", ["mean", "iqm"])
    @pytest.mark.parametrize("seeds", [5, 10])
    def test_order_of_seeds_does_not_matter(self, statistic, seeds):
        x = scores(seeds)
        turned = estimates(summarise(x[::-1], statistic, resamples=50_000))
        for before, after in zip(estimates(summarise(x, statistic, resamples=50_000)), turned, strict=True):
            assert after.value == pytest.approx(before.value)
            exact = seeds < BOOTSTRAP_SEEDS  # all resamples; otherwise the same in distribution
            width = np.diff(before.interval).item()
            assert after.interval == pytest.approx(before.interval, abs=1e-9 if exact else 0.03 * width)

    def test_order_of_tasks_does_not_matter(self):
        x = scores()
        there, back = summarise(x, "iqm"), summarise(x[:, ::-1], "iqm")
        for before, after in zip(estimates(there), [*back.tasks[::-1], back.overall, back.worst], strict=True):
            assert numbers(after) == pytest.approx(numbers(before))

    def test_a_task_that_every_seed_repeats_adds_nothing(self):
        """Seeds are resampled with all their tasks: copies of a column are no new information."""
        x = scores()[:, :1]
        assert numbers(summarise(np.repeat(x, 5, 1)).overall) == pytest.approx(numbers(summarise(x).overall))

    def test_same_seed_same_interval(self):
        assert summarise(scores()) == summarise(scores())
        assert summarise(scores()) != summarise(scores(), seed=1)

    def test_more_confidence_is_wider(self):
        for seeds in (3, 10):
            narrow, wide = (summarise(scores(seeds), confidence=c).overall.interval for c in (0.8, 0.99))
            assert wide[0] < narrow[0] < narrow[1] < wide[1]

    def test_any_statistic(self):
        x = scores()
        (median,) = bootstrap(x, lambda samples: np.median(samples, axis=(1, 2))[:, None])
        assert median.value == np.median(x)
        assert covers(median, np.median(x))

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ([[1.0, math.nan]], r"scores have NaN or infinity at index \[0, 1\]"),
            ([[1.0], [math.inf]], r"scores have NaN or infinity at index \[1, 0\]"),
            ([[1, 2], [3]], "as many numbers in each row"),
            ([["a"]], "must be a matrix"),
            ([1, 2, 3], r"must be a matrix \(seeds, tasks\), got the shape \(3,\)"),
            ([], "must be a matrix"),
            ([[]], "must be a matrix"),
        ],
    )
    def test_what_is_no_score_matrix_is_refused(self, bad, message):
        with pytest.raises(ValueError, match=message) as error:
            summarise(bad)
        assert "\n" not in str(error.value)

    def test_unknown_arguments_are_refused(self):
        with pytest.raises(ValueError, match="unknown statistic 'median'; choose from mean, iqm"):
            summarise(scores(), "median")
        with pytest.raises(ValueError, match="confidence is 95; it must be above 0 and below 1"):
            summarise(scores(), confidence=95)
        with pytest.raises(ValueError, match="resamples is 0; it must be at least 1"):
            summarise(scores(), resamples=0)


class TestMeans:
    @pytest.mark.parametrize("seeds", [2, 5, 20])
    def test_are_scipys(self, seeds):
        columns = normal(np.random.default_rng(seeds), (seeds, 4))
        mean, half = means(columns, confidence=0.9)
        for column, centre, width in zip(columns.T, mean, half, strict=True):
            expected = stats.ttest_1samp(column, 0).confidence_interval(0.9)
            assert (centre - width, centre + width) == pytest.approx(tuple(expected))

    def test_one_seed_has_no_interval(self):
        mean, half = means([[1.0, 2.0]])
        assert mean.tolist() == [1, 2]
        assert half is None

    @pytest.mark.parametrize("bad", [[], [[1.0], [math.nan]], [[1.0, 2.0], [1.0]]])
    def test_what_is_no_matrix_is_refused(self, bad):
        with pytest.raises(ValueError, match="values"):
            means(bad)


class TestCoverage:
    """Intervals of nominal 95 % cover the truth in 90-98 % of 500 draws at 10 seeds."""

    DRAWS = 500

    @pytest.mark.parametrize("distribution", [normal, with_failures])
    @pytest.mark.parametrize("statistic", ["mean", "iqm"])
    def test_one_task(self, distribution, statistic):
        rng = np.random.default_rng(0)
        population = distribution(rng, 1_000_000)
        truth = population.mean() if statistic == "mean" else stats.trim_mean(population, 0.25)
        covered = []
        for part in range(5):  # columns are draws; those of a part share their resamples
            draws = distribution(rng, (10, self.DRAWS // 5))
            covered += [covers(task, truth) for task in summarise(draws, statistic, resamples=4000, seed=part).tasks]
        assert len(covered) == self.DRAWS
        assert 0.90 <= np.mean(covered) <= 0.98

    @pytest.mark.parametrize("statistic", ["mean", "iqm"])
    def test_over_correlated_tasks(self, statistic):
        rng = np.random.default_rng(1)
        population = correlated(rng, 500_000)
        truth = population.mean() if statistic == "mean" else stats.trim_mean(population, 0.25, axis=None)
        drawn = (summarise(correlated(rng, 10), statistic, resamples=2000, seed=i) for i in range(self.DRAWS))
        assert 0.90 <= np.mean([covers(summary.overall, truth) for summary in drawn]) <= 0.98

    @pytest.mark.parametrize("seeds", [3, 5])
    def test_few_seeds(self, seeds):
        draws = normal(np.random.default_rng(2), (seeds, self.DRAWS))
        assert 0.90 <= np.mean([covers(task, 150) for task in summarise(draws).tasks]) <= 0.98

    def test_probability_of_improvement(self):
        rng = np.random.default_rng(3)
        truth = stats.norm.cdf(40 / math.sqrt(2 * 40**2))  # a shift of one deviation
        drawn = (probability_of_improvement(correlated(rng, 10) + 40, correlated(rng, 10)) for _ in range(self.DRAWS))
        assert 0.90 <= np.mean([covers(estimate, truth) for estimate in drawn]) <= 0.985

    def test_success_rate(self):
        rng = np.random.default_rng(4)
        rates = rng.binomial(20, rng.beta(9, 1, (10, self.DRAWS))) / 20
        assert 0.90 <= np.mean([covers(task, 0.9) for task in success_rates(rates).tasks]) <= 0.98

    def test_sample_efficiency(self):
        rng = np.random.default_rng(5)
        drawn = (sample_efficiency(rng.exponential(size=10)).median for _ in range(self.DRAWS))
        assert np.mean([covers(estimate, math.log(2)) for estimate in drawn]) >= 0.95 - 0.02  # at least, by its theory

    def test_paired_difference(self):
        rng = np.random.default_rng(6)
        drawn = (compare_two(with_failures(rng, (5, 1)), with_failures(rng, (5, 1))) for _ in range(self.DRAWS))
        assert 0.90 <= np.mean([covers(comparison.difference, 0) for comparison in drawn]) <= 0.99


class TestProbabilityOfImprovement:
    @pytest.mark.parametrize("digits", [None, -1])  # rounded to tens there are ties
    def test_is_mann_whitneys_u_over_n_m(self, digits):
        x, y = scores(10) + 15, scores(7, seed=1)
        if digits is not None:
            x, y = x.round(digits), y.round(digits)
            assert np.isin(x, y).any()
        expected = stats.mannwhitneyu(x, y, axis=0).statistic / (10 * 7)
        for task in range(3):
            of_task = probability_of_improvement(x[:, [task]], y[:, [task]])
            assert of_task.value == pytest.approx(expected[task])
            assert covers(of_task, of_task.value)
        assert probability_of_improvement(x, y).value == pytest.approx(expected.mean())

    def test_standard_error_is_delongs(self):
        """One task: the variance of the placements, from scipy's Brunner-Munzel statistic."""
        x, y = scores(10)[:, :1] + 15, scores(7, seed=1)[:, :1]
        estimate = probability_of_improvement(x, y)
        test = stats.brunnermunzel(y[:, 0], x[:, 0])
        error = (estimate.value - 0.5) / test.statistic
        freedom = implied_freedom(test)
        half = stats.t.ppf(0.975, freedom) * error / (estimate.value * (1 - estimate.value))
        logit = math.log(estimate.value / (1 - estimate.value))
        assert estimate.interval == pytest.approx([1 / (1 + math.exp(-logit - sign * half)) for sign in (-1, 1)])

    def test_turned_around(self):
        x, y = scores(10), scores(7, seed=1)
        there, back = probability_of_improvement(x, y), probability_of_improvement(y, x)
        assert back.value == pytest.approx(1 - there.value)
        assert back.interval == pytest.approx([1 - end for end in there.interval[::-1]])

    def test_sees_only_the_order(self):
        x, y = scores(10) / 100, scores(7, seed=1) / 100
        there, bent = probability_of_improvement(x, y), probability_of_improvement(np.exp(x), np.exp(y))
        assert numbers(bent) == pytest.approx(numbers(there))

    def test_of_a_method_over_itself_is_a_half(self):
        estimate = probability_of_improvement(scores(), scores())
        assert estimate.value == pytest.approx(0.5)
        assert covers(estimate, 0.5)

    def test_separated_methods_leave_room_for_doubt(self):
        estimate = probability_of_improvement(scores(5) + 1000, scores(8))
        assert estimate == Estimate(1.0, (pytest.approx(0.025 ** (1 / 5)), 1.0), "bounds")
        estimate = probability_of_improvement(scores(5) - 1000, scores(8))
        assert estimate == Estimate(0.0, (0.0, pytest.approx(1 - 0.025 ** (1 / 5))), "bounds")

    def test_one_seed_has_no_interval(self):
        assert probability_of_improvement([[1, 2, 3]], scores() + 1000) == Estimate(0.0)

    def test_other_tasks_are_refused(self):
        with pytest.raises(ValueError, match="scores have 3 tasks and baseline scores 2"):
            probability_of_improvement(scores(), scores()[:, :2])
        with pytest.raises(ValueError, match="baseline scores have NaN"):
            probability_of_improvement(scores(), [[math.nan, 1, 2]])


def implied_freedom(test):
    """Degrees of freedom at which Student's distribution gives the p of a Brunner-Munzel test."""
    grid = np.linspace(1, 20, 190_001)
    return grid[np.abs(2 * stats.t.sf(abs(test.statistic), grid) - test.pvalue).argmin()]


class TestSuccessRates:
    def test_values(self):
        rates = np.array([[0.9, 0.1], [0.7, 0.8], [1.0, 0.6]])
        summary = success_rates(rates)
        assert [task.value for task in summary.tasks] == pytest.approx(rates.mean(0))
        assert summary.overall.value == pytest.approx(rates.mean())
        assert summary.worst.value == pytest.approx((0.1 + 0.7 + 0.6) / 3)
        for estimate in estimates(summary):
            low, high = estimate.interval
            assert 0 < low < estimate.value < high < 1

    def test_failures_and_successes_mirror_each_other(self):
        rates = np.random.default_rng(0).binomial(20, 0.8, (6, 3)) / 20
        for there, back in zip(success_rates(rates).tasks, success_rates(1 - rates).tasks, strict=True):
            assert back.interval == pytest.approx([1 - end for end in there.interval[::-1]])

    def test_near_a_half_it_is_students(self):
        rates = 0.5 + 0.001 * np.random.default_rng(0).normal(size=(10, 1))
        expected = stats.t.interval(0.95, 9, rates.mean(), stats.sem(rates[:, 0]))
        assert success_rates(rates).overall.interval == pytest.approx(expected, abs=1e-6)

    def test_without_spread(self):
        """The ends of the interval make what was seen as unlikely as they should, were the rates all 0 or 1."""
        never, always, between = success_rates([[0.0, 1.0, 0.9]] * 10).tasks
        assert never.interval == (0, pytest.approx(stats.binomtest(0, 10).proportion_ci(0.95).high))
        assert always.interval == (pytest.approx(stats.binomtest(10, 10).proportion_ci(0.95).low), 1)
        assert between.kind == "bounds"
        assert between.interval[0] < 0.9 < between.interval[1]

    def test_one_seed_has_no_interval(self):
        assert all(estimate.interval is None for estimate in estimates(success_rates([[0.5, 1.0]])))

    def test_what_is_no_rate_is_refused(self):
        with pytest.raises(ValueError, match="rates must lie between 0 and 1, got -3 to 200"):
            success_rates([[200, -3]])


class TestNormalise:
    def test_ends(self):
        random, reference = np.array([-180.0, -160.0, -200.0]), np.array([228.0, 100.0, 194.0])
        assert normalise([random, reference], random, reference) == pytest.approx(np.array([[0] * 3, [1] * 3]))
        assert normalise([(random + reference) / 2], random, reference) == pytest.approx(np.full((1, 3), 0.5))

    def test_a_scale_needs_two_ends(self):
        with pytest.raises(
            ValueError, match=r"task 1: the reference \(-200\) must be above the random policy \(-160\)"
        ):
            normalise([[0, 0]], [-180, -160], [228, -200])
        with pytest.raises(ValueError, match="scores have 2 tasks and reference scores 3"):
            normalise([[0, 0]], [-180, -160], [228, 200, 1])
        with pytest.raises(ValueError, match="random scores have NaN"):
            normalise([[0, 0]], [math.nan, -160], [228, 200])


def by_seed(matrix, first=0):
    return {first + i: row for i, row in enumerate(matrix)}


def compare_two(x, y, **settings):
    return compare({"method": by_seed(x)}, by_seed(y), **settings)["method"]


class TestCompare:
    def test_is_the_paired_t_test_on_means_over_tasks(self):
        x, y = scores(6) + 30, scores(6, seed=1)
        comparison = compare_two(x, y)
        expected = stats.ttest_rel(x.mean(1), y.mean(1))
        low, high = expected.confidence_interval(0.95)
        assert comparison.seeds == (0, 1, 2, 3, 4, 5)
        assert comparison.p == pytest.approx(expected.pvalue)
        assert comparison.p_holm == pytest.approx(expected.pvalue)
        assert numbers(comparison.difference) == pytest.approx([(x - y).mean(), low, high])
        assert comparison.deviation == pytest.approx((x - y).mean(1).std(ddof=1))
        assert comparison.detectable == pytest.approx(minimum_detectable_difference(comparison.deviation, 6))

    @pytest.mark.parametrize("seeds", [3, 6, 10])
    def test_permutations_are_all_signs(self, seeds):
        x, y = scores(seeds) + 20, scores(seeds, seed=1)
        d = (x - y).mean(1)
        flipped = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=seeds)]
        expected = np.mean(np.array(flipped) >= abs(d.sum()) - 1e-9)
        assert compare_two(x, y, test="permutation").p == pytest.approx(expected)

    def test_many_seeds_draw_their_signs_from_the_seed(self):
        x, y = scores(20) + 10, scores(20, seed=1)
        first, again, other = (compare_two(x, y, test="permutation", seed=seed).p for seed in (0, 0, 1))
        assert first == again
        assert first != other
        assert first == pytest.approx(compare_two(x, y).p, abs=0.03)

    def test_only_common_seeds_count(self):
        x, y = scores(10), scores(10, seed=1)
        comparison = compare({"m": by_seed(x, first=4)}, by_seed(y))["m"]
        assert comparison.seeds == (4, 5, 6, 7, 8, 9)
        assert comparison.difference == compare_two(x[:6], y[4:]).difference

    def test_holm_counts_the_methods_that_can_be_tested(self):
        y = scores(6)
        methods = {name: by_seed(scores(6, seed=1 + i) + 15 * i) for i, name in enumerate("abc")}
        methods["one seed"] = {0: [1, 2, 3]}
        comparisons = compare(methods, by_seed(y))
        assert list(comparisons) == ["a", "b", "c", "one seed"]
        assert [comparisons[name].p_holm for name in "abc"] == pytest.approx(holm([comparisons[n].p for n in "abc"]))
        alone = comparisons["one seed"]
        assert alone.difference == Estimate(pytest.approx(2 - y[0].mean()))
        assert (alone.p, alone.p_holm, alone.deviation, alone.detectable) == (None, None, None, None)

    @pytest.mark.parametrize("test", ["t", "permutation"])
    def test_a_method_does_not_differ_from_itself(self, test):
        comparison = compare_two(scores(), scores(), test=test)
        assert comparison.p == 1
        assert comparison.difference == Estimate(0, (0, 0), "t")
        assert comparison.detectable == 0

    def test_equal_differences(self):
        assert compare_two([[1, 1], [2, 2]], [[0, 0], [1, 1]]).p == 0

    def test_of_no_methods_there_is_nothing_to_say(self):
        assert compare({}, by_seed(scores())) == {}

    def test_bad_input_is_refused(self):
        y = by_seed(scores(3))
        with pytest.raises(ValueError, match="gradnorm has no seed in common with the baseline"):
            compare({"gradnorm": by_seed(scores(3), first=100)}, y)
        with pytest.raises(ValueError, match="gradnorm has 2 tasks and the baseline 3"):
            compare({"gradnorm": by_seed(scores(3)[:, :2])}, y)
        with pytest.raises(ValueError, match="scores of gradnorm have NaN"):
            compare({"gradnorm": {0: [math.nan, 1, 2]}}, y)
        with pytest.raises(ValueError, match="scores of gradnorm must be a matrix"):
            compare({"gradnorm": {0: [1, 2, 3], 1: [1, 2]}}, y)
        with pytest.raises(ValueError, match="unknown test 'wilcoxon'; choose from t, permutation"):
            compare({}, y, test="wilcoxon")

    def test_false_alarms(self):
        """Without a difference p < 0.05 comes up in 5 % of draws or fewer, failures or not, with 3 seeds or 10."""
        rng = np.random.default_rng(0)
        for distribution, seeds in itertools.product((normal, with_failures), (3, 10)):
            draws = ((distribution(rng, (seeds, 1)), distribution(rng, (seeds, 1))) for _ in range(500))
            assert np.mean([compare_two(x, y).p < 0.05 for x, y in draws]) <= 0.07


class TestHolm:
    def test_by_hand(self):
        # 0.005 * 4 = 0.02; 0.01 * 3 = 0.03; 0.03 * 2 = 0.06; 0.04 * 1 = 0.04, raised to the 0.06 before it
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_is_at_most_one_and_keeps_the_order(self):
        p = np.random.default_rng(0).random(13)
        adjusted = holm(p)
        assert (adjusted >= p).all()
        assert (adjusted <= np.minimum(13 * p, 1) + 1e-12).all()  # never worse than Bonferroni's
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()

    def test_of_one_or_none(self):
        assert holm([0.3]) == pytest.approx([0.3])
        assert len(holm([])) == 0

    @pytest.mark.parametrize("p", [[-0.1], [1.1], [math.nan], [[0.1]]])
    def test_what_is_no_p_is_refused(self, p):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm(p)


class TestMinimumDetectableDifference:
    @pytest.mark.parametrize("seeds", [3, 10])
    @pytest.mark.parametrize("power", [0.5, 0.8])
    def test_paired_power_by_simulation(self, seeds, power):
        difference = minimum_detectable_difference(25, seeds, power=power)
        draws = np.random.default_rng(0).normal(difference, 25, (20_000, seeds))
        assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(power, abs=0.012)

    def test_unpaired_power_by_simulation(self):
        rng = np.random.default_rng(0)
        difference = minimum_detectable_difference(25, 10, 5)
        x, y = rng.normal(difference, 25, (20_000, 10)), rng.normal(0, 25, (20_000, 5))
        assert (stats.ttest_ind(x, y, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.012)

    def test_thirty_seeds_for_seventeen_points(self):
        """The figure of the project's plan: a gap of 17 at a deviation of 25 takes 30 seeds for a power of 0.75."""
        assert minimum_detectable_difference(25, 30, 30, power=0.75) == pytest.approx(17, abs=0.3)

    def test_of_many_seeds_it_is_the_normal_one(self):
        expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / 100
        assert minimum_detectable_difference(1, 10_000) == pytest.approx(expected, rel=1e-3)

    def test_is_in_the_unit_of_the_deviation(self):
        assert minimum_detectable_difference(50, 5) == pytest.approx(2 * minimum_detectable_difference(25, 5))
        assert minimum_detectable_difference(0, 5) == 0

    def test_fewer_seeds_and_stricter_tests_see_less(self):
        by_seeds = [minimum_detectable_difference(25, n) for n in (2, 3, 5, 10, 100)]
        assert by_seeds == sorted(by_seeds, reverse=True)
        assert minimum_detectable_difference(25, 10, alpha=0.05 / 13) > by_seeds[3]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"deviation": 25, "seeds": 1}, "at least 2 pairs of seeds"),
            ({"deviation": 25, "seeds": 0}, "at least 2 pairs of seeds"),
            ({"deviation": 25, "seeds": 1, "baseline_seeds": 1}, "1 seed against 2"),
            ({"deviation": 25, "seeds": 5, "baseline_seeds": 0}, "1 seed against 2"),
            ({"deviation": math.nan, "seeds": 5}, "deviation is .*; it must be at least 0 and finite"),
            ({"deviation": -1, "seeds": 5}, "deviation is .*; it must be at least 0 and finite"),
            ({"deviation": 25, "seeds": 5, "alpha": 0}, "alpha is 0; it must be above 0 and below 1"),
            ({"deviation": 25, "seeds": 5, "power": 0.01}, r"power \(0.01\) must be larger than alpha \(0.05\)"),
        ],
    )
    def test_bad_input_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            minimum_detectable_difference(**arguments)


class TestPerformanceProfile:
    def test_shares(self):
        profile = performance_profile([[0, 100], [100, 200]], [-1, 0, 100, 150, 200])
        assert profile.share == pytest.approx([1, 0.75, 0.25, 0.25, 0])  # above, not at
        assert profile.thresholds == pytest.approx([-1, 0, 100, 150, 200])

    def test_falls_and_keeps_within_its_interval(self):
        profile = performance_profile(scores(), np.linspace(-100, 400, 50))
        assert (np.diff(profile.share) <= 0).all()
        assert ((profile.low >= 0) & (profile.low <= profile.share)).all()
        assert ((profile.high <= 1) & (profile.high >= profile.share)).all()
        assert profile.high[-1] > 0  # no seed scored 400, which does not rule it out

    def test_area_is_the_mean(self):
        x = scores()
        thresholds = np.linspace(-200, 500, 7001)
        assert performance_profile(x, thresholds).share.mean() * 700 - 200 == pytest.approx(x.mean(), abs=0.2)

    def test_one_seed_has_no_interval(self):
        profile = performance_profile([[0, 100]], [50])
        assert profile.share == pytest.approx([0.5])
        assert profile.low is None
        assert profile.high is None

    def test_bad_thresholds_are_refused(self):
        with pytest.raises(ValueError, match="thresholds must be a list of numbers"):
            performance_profile(scores(), [])
        with pytest.raises(ValueError, match="thresholds have NaN"):
            performance_profile(scores(), [math.nan])


class TestSampleEfficiency:
    def test_first_step_at_or_above(self):
        steps, returns = [1000, 2000, 3000, 4000], [-50, 100, 60, 200]
        assert [steps_to_reach(steps, returns, level) for level in (-100, 50, 100, 150, 200, 201)] == [
            *(1000, 2000, 2000, 4000, 4000),
            math.inf,
        ]

    def test_never_counts_as_infinity(self):
        never = math.inf
        assert sample_efficiency([3e5, 1e5, never]).median == Estimate(3e5)
        assert sample_efficiency([3e5, 1e5, never]).reached == 2
        assert sample_efficiency([1e5, never, never]).median.value == never
        assert sample_efficiency([1e5, never]).median.value == never
        assert sample_efficiency([never] * 10).median == Estimate(never, (never, never), "order statistics")

    @pytest.mark.parametrize(("seeds", "rank"), [(6, 0), (8, 0), (9, 1), (10, 1), (20, 5)])
    def test_interval_of_the_median_is_between_order_statistics(self, seeds, rank):
        steps = np.random.default_rng(0).permutation(seeds) + 1
        low, high = sample_efficiency(steps).median.interval
        assert (low, high) == (rank + 1, seeds - rank)
        assert 1 - 2 * stats.binom.cdf(rank, seeds, 0.5) >= 0.95 > 1 - 2 * stats.binom.cdf(rank + 1, seeds, 0.5)

    @pytest.mark.parametrize("seeds", [1, 5])
    def test_few_seeds_have_no_interval(self, seeds):
        assert sample_efficiency([1e5] * seeds).median == Estimate(1e5)

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="as many returns as steps, got 1 and 2"):
            steps_to_reach([1, 2], [1], 0)
        with pytest.raises(ValueError, match="steps must be in order"):
            steps_to_reach([2, 1], [1, 2], 0)
        with pytest.raises(ValueError, match="returns have NaN"):
            steps_to_reach([1, 2], [1, math.nan], 0)
        with pytest.raises(ValueError, match="steps must be a list of numbers"):
            steps_to_reach([], [], 0)
        with pytest.raises(ValueError, match="threshold is nan; it must be finite"):
            steps_to_reach([1], [1], math.nan)
        for bad in ([], [math.nan], [-1]):
            with pytest.raises(ValueError, match="one number per seed"):
                sample_efficiency(bad)
