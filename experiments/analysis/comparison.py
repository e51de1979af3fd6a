"""Comparing methods: gathers every number of the tables and figures from `intervals`, `significance` and `measures`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.goals import Goal, disagreements, goals_of, solved_returns
from experiments.analysis.intervals import Estimate, Summary, probability_of_improvement, success_rates, summarise
from experiments.analysis.measures import SampleEfficiency, normalise, sample_efficiency, steps_to_reach
from experiments.analysis.parameters import count_parameters
from experiments.analysis.replicates import Method
from experiments.analysis.runs import BASELINE, BASELINE_OF_AGENT, BLIND, REFERENCE
from experiments.analysis.significance import ALPHA, Comparison, compare, holm, minimum_detectable_difference

Array = NDArray[np.float64]
T = TypeVar("T")

MEAN, WORST = "mean over tasks", "worst task"  # shown beside the tasks in figures

# Settings of the budget and of the evaluation. A comparison is about the methods alone only if these are the same.
BUDGET = (
    *("total_steps", "episodes_per_task", "envs_per_task", "batch_size", "train_freq", "gradient_steps"),
    *("eval_interval", "eval_episodes", "final_episodes"),
)
# Settings that do not change the numbers of a run, or that are meant to differ between seeds.
INDIFFERENT = {
    *("seed", "results_dir", "overwrite", "resume", "existing", "checkpoint_interval", "step_timeout", "quiet"),
    *("log_interval", "tensorboard", "wandb", "wandb_project", "wandb_entity", "label"),
}


@dataclass(frozen=True)
class Scale:
    """The two ends of the scale of normalised scores, by task."""

    random: Mapping[str, float]  # mean return of a random policy: 0
    reference: Mapping[str, float]  # mean return of the independent agents, or the return that counts as solved: 1
    reference_seeds: int | None  # None if the reference is the return that counts as solved


@dataclass(frozen=True)
class Result:
    """What is known about one method. Entries are None where the runs do not determine them."""

    method: Method
    mean: Summary  # of returns
    iqm: Summary
    success: Summary | None  # shares of episodes, of the method's rated tasks; None if there are none
    normalised_mean: Summary | None
    normalised_iqm: Summary | None
    steps_to: Mapping[Goal, SampleEfficiency]  # by goal; empty without learning curves
    parameters: int | None
    baseline: str | None  # name of the method that this one is compared with
    improvement: Estimate | None  # probability that a run is better than a run of the baseline
    comparison: Comparison | None  # with the baseline, of means over tasks; p_holm is adjusted over all results
    detectable: float | None  # smallest difference of means found with power 0.8 after Holm's correction

    def returns(self, of: str) -> tuple[Estimate, Array] | None:
        """Return after training: the mean over seeds, and the (seeds,) returns of single seeds.

        Args:
            of: a task, `MEAN` or `WORST`.

        Returns:
            None for a task that the method does not have.
        """
        scores = self.method.scores
        if of == MEAN:
            return self.mean.overall, scores.mean(1)
        if of == WORST:
            return self.mean.worst, scores.min(1)
        if of not in self.method.tasks:
            return None
        place = self.method.tasks.index(of)
        return self.mean.tasks[place], scores[:, place]


@dataclass(frozen=True)
class Analysis:
    """Results of several methods, side by side."""

    results: tuple[Result, ...]
    tasks: tuple[str, ...]  # of all methods together
    solved: Mapping[str, float | None]  # for each task, the return that counts as solved; None if there is none
    scale: Scale | None
    comparisons: int  # number of tests that Holm's correction covers
    warnings: tuple[str, ...]  # what makes methods hard to compare, a sentence each

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods in the order of their results."""
        return tuple(result.method for result in self.results)

    @property
    def all_one_seed(self) -> bool:
        """Whether no method has more than one seed."""
        return len(self.one_seed) == len(self.results)

    @property
    def one_seed(self) -> tuple[str, ...]:
        """Names of the methods that have a single seed, and so no interval."""
        return tuple(method.name for method in self.methods if len(method.runs) == 1)


def analyse(
    methods: Sequence[Method],
    others: Mapping[str, Method] | None = None,
    baseline: str = BASELINE,
    random: Mapping[str, float] | None = None,
) -> Analysis:
    """Estimates, intervals and tests for each of the methods.

    Args:
        methods: the methods to report on, in this order.
        others: all methods by name, from which the baseline and the reference are taken. Default: `methods`.
        baseline: the baseline of the aware variant; that of the blind variant is `<baseline>_blind`. The default stands
            for `shared_sac` where runs are of SAC. A method is not
            compared if there is no baseline with the same tasks.
        random: mean return of a random policy by task. Without it scores are not normalised. Their 1 are the
            independent agents or, without these, the return that counts as solved.
    """
    others = {method.name: method for method in methods} if others is None else others
    solved = solved_returns(methods)
    scale = _scale(others.get(REFERENCE), random, solved)
    common = _common_steps(methods)
    results = [_result(method, others, baseline, scale, solved, common) for method in methods]
    results = _correct(results)
    tests = sum(result.comparison is not None and result.comparison.p is not None for result in results)
    tasks = tuple(dict.fromkeys(task for method in methods for task in method.tasks))
    warnings = (*_alone(results, baseline), *_warnings(methods), *disagreements(methods))
    return Analysis(tuple(results), tasks, solved, scale, tests, warnings)


def _scale(
    reference: Method | None, random: Mapping[str, float] | None, solved: Mapping[str, float | None]
) -> Scale | None:
    """The scale of the tasks on which the reference beats the random policy; None if there is no such task."""
    if random is None:
        return None
    if reference is None:
        means = {task: value for task, value in solved.items() if value is not None}
    else:
        means = dict(zip(reference.tasks, reference.scores.mean(0).tolist(), strict=True))
    means = {task: mean for task, mean in means.items() if task in random and mean > random[task]}
    seeds = None if reference is None else len(reference.runs)
    return Scale({task: random[task] for task in means}, means, seeds) if means else None


def _common_steps(methods: Sequence[Method]) -> Array:
    """The steps at which every run that is long enough was evaluated.

    With more steps, a method that was evaluated more often would seem to learn faster. If a run has no step in common
    with the others, all steps count.
    """
    grids = [x for method in methods for x, _ in method.mean_return_curves()]
    if not grids:
        return np.empty(0)
    steps, counts = np.unique(np.concatenate([np.unique(x) for x in grids]), return_counts=True)
    lengths = np.array([x[-1] for x in grids])
    common: Array = steps[counts == (lengths[:, None] >= steps).sum(0)]
    return common if all(np.isin(x, common).any() for x in grids) else steps


def _steps_to(method: Method, solved: Mapping[str, float | None], common: Array) -> dict[Goal, SampleEfficiency]:
    """How many environment steps each goal of the analysis took, at the steps that all methods have in common."""
    found: dict[Goal, SampleEfficiency] = {}
    for goal in goals_of(solved):
        curves = method.margin_curves(solved) if goal == "solved" else method.mean_return_curves()
        threshold = 0.0 if goal == "solved" else goal
        if curves:
            steps = []
            for x, y in curves:
                known = np.isin(x, common)
                known = known if known.any() else np.full(len(x), True)
                steps.append(steps_to_reach(x[known], y[known], threshold))
            found[goal] = sample_efficiency(steps)
    return found


def _result(
    method: Method,
    others: Mapping[str, Method],
    baseline: str,
    scale: Scale | None,
    solved: Mapping[str, float | None],
    common: Array,
) -> Result:
    """The result of a method. Its test is not yet corrected for the number of methods."""
    normalised = None
    if scale is not None and all(task in scale.random for task in method.tasks):
        ends = ([end[task] for task in method.tasks] for end in (scale.random, scale.reference))
        normalised = normalise(method.scores, *ends)
    rival = _baseline(method, others, baseline)
    comparison = None
    if rival is not None and set(method.seeds) & set(rival.seeds):
        comparison = compare({method.name: method.rows()}, rival.rows())[method.name]
    return Result(
        method=method,
        mean=summarise(method.scores),
        iqm=summarise(method.scores, "iqm"),
        success=success_rates(method.success) if method.rated else None,
        normalised_mean=None if normalised is None else summarise(normalised),
        normalised_iqm=None if normalised is None else summarise(normalised, "iqm"),
        steps_to=_steps_to(method, solved, common),
        parameters=method.runs[0].evaluation.get("parameters") or count_parameters(method.runs[0].config),
        baseline=None if rival is None else rival.name,
        improvement=None if rival is None else probability_of_improvement(method.scores, rival.scores),
        comparison=comparison,
        detectable=None,
    )


def _baseline(method: Method, others: Mapping[str, Method], baseline: str) -> Method | None:
    """The method to compare with: the baseline of the same variant, on the same tasks."""
    rival = others.get(_baseline_name(method, baseline))
    return rival if rival is not None and rival.name != method.name and rival.tasks == method.tasks else None


def _baseline_name(method: Method, baseline: str) -> str:
    if baseline == BASELINE:
        agent = method.runs[0].config.get("agent")
        baseline = BASELINE_OF_AGENT.get(agent, baseline) if isinstance(agent, str) else baseline
    return baseline.removesuffix(BLIND) + (BLIND if method.blind else "")


def _correct(results: Sequence[Result]) -> list[Result]:
    """The results with tests corrected for the number of tests, and with the differences that these can detect."""
    p = [result.comparison.p for result in results if result.comparison and result.comparison.p is not None]
    adjusted = iter(holm(p).tolist())
    corrected = []
    for result in results:
        comparison, detectable = result.comparison, None
        if comparison is not None and comparison.p is not None:
            comparison = dataclasses.replace(comparison, p_holm=next(adjusted))
            assert comparison.deviation is not None
            # Holm's correction rejects whatever Bonferroni's correction rejects, so this power is reached at least.
            detectable = minimum_detectable_difference(
                comparison.deviation, len(comparison.seeds), alpha=ALPHA / len(p)
            )
        corrected.append(dataclasses.replace(result, comparison=comparison, detectable=detectable))
    return corrected


def _alone(results: Sequence[Result], baseline: str) -> list[str]:
    """A sentence for each baseline that is missing."""
    missing: dict[str, list[str]] = {}
    for result in results:
        name = _baseline_name(result.method, baseline)
        if result.baseline is None and result.method.name != name:
            missing.setdefault(name, []).append(result.method.name)
    return [
        f"There are no finished runs of {name} on the same tasks to compare {', '.join(who)} with."
        for name, who in missing.items()
    ]


def _warnings(methods: Sequence[Method]) -> list[str]:
    """A sentence for each method that has inexact runs, and for each setting that differs although it should not."""
    found = []
    for method in methods:
        keys = dict.fromkeys(key for run in method.runs for key in run.settings)
        differ = [key for key in keys if key not in INDIFFERENT and len(_groups(method.runs, _setting(key))) > 1]
        later = [key for key in differ if any(key not in run.settings for run in method.runs)]
        if differ := [key for key in differ if key not in later]:
            found.append(f"The seeds of {method.name} differ in {', '.join(differ)}.")
        if later:
            before = ", ".join(str(run.seed) for run in method.runs if any(key not in run.settings for key in later))
            found.append(f"Seeds {before} of {method.name} were run before there was {', '.join(later)}.")
        inexact = [str(run.seed) for run in method.runs if not run.evaluation.get("exact", True)]
        if inexact:
            found.append(
                f"Runs of {method.name} (seed {', '.join(inexact)}) were continued on another kind of processor or "
                "with other threads, so that nobody can repeat them bit for bit."
            )
    for key in BUDGET:
        groups = _groups(methods, lambda method, key=key: _setting(key)(method.runs[0]))  # type: ignore[misc]
        if len(groups) > 1:
            values = "; ".join(f"{value} for {', '.join(m.name for m in group)}" for value, group in groups.items())
            found.append(f"The methods differ in {key}: {values}.")
    return found


def _setting(key: str) -> Callable[[Any], str]:
    return lambda run: str(run.settings.get(key))


def _groups(items: Sequence[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def told_apart(result: Result) -> bool:
    """Whether the method differs from its baseline, at a level of 0.05 over all comparisons."""
    p = None if result.comparison is None else result.comparison.p_holm
    return p is not None and p <= ALPHA
