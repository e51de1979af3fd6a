"""The study of interference: where each method's update goes, and what a shared backbone costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.studies import figures, fitting, problems, report
from experiments.studies.interference import InterferenceConfig

TASKS = ("A", "B", "C", "D")
RELATEDNESS = (0.0, 0.5, 1.0)
PAIRS = 10
CALLS = 300
METHODS = tuple(fitting.METHODS)

SETTING = """\
**Gradients.** {pairs} pairs of opposed gradients in 10 dimensions per seed (cosine -0.9 to -0.3; the second up to 30
times as long). *harmed* is the share of pairs for which the method's update raises one of the two losses to first
order. Methods that learn see the pair {calls} times first; AIM's guidance wants the sum of the two.

**Transfer.** Four regressions on 10 inputs through a backbone 10-16-2, a bottleneck of two features, with a linear head
each, against a model of the same kind for each task (*alone*). Targets have mean 0 and deviation 1. 96 rows to train on
and 24 that AIM holds out for guidance; the others train on all 120, except
`naive, AIM's rows`, which shows what holding out costs. {steps} full-batch updates by Adam at
{learning_rate}; AIM's thresholds learn at {policy_lr}. `relatedness` is the cosine of the features that two tasks read:
0, their own; 1, the same. Errors are mean squared errors on 512 validation rows after the last update; 1 is a model
that knows nothing."""

Fits = dict[str, dict[int, fitting.Fit]]  # by method and seed
Errors = dict[str, dict[int, float]]  # by method and seed


def study(config: InterferenceConfig) -> report.Report:
    """Measure the directions of updates and the transfer between tasks over all seeds, and report."""
    harm = fitting.collect("gradients", METHODS, config.seed_numbers, harmed_share, config.quiet)
    fits = {relatedness: train_all(config, relatedness) for relatedness in RELATEDNESS}
    errors = {
        relatedness: {m: {seed: float(fit.final.mean()) for seed, fit in of.items()} for m, of in by_method.items()}
        for relatedness, by_method in fits.items()
    }
    arrows = {
        title: (minima, steepness, {m: fitting.settled(steepness[:, None] * minima, m, CALLS) for m in METHODS})
        for title, (minima, steepness) in problems.bowls().items()
    }
    gains = [
        [errors[r]["naive"][seed] - errors[r][fitting.ALONE][seed] for seed in config.seed_numbers] for r in RELATEDNESS
    ]
    return report.Report(
        title="Interference: conflicting gradients and negative transfer",
        setting=SETTING.format(pairs=PAIRS, calls=CALLS, **config.settings),
        settings=config.settings,
        tables=tables(harm, fits[0.0], errors),
        verdicts=report.judge(claims(harm, errors)),
        figures={
            "gradient_arrows": figures.gradient_arrows(arrows),
            "learning_curves": figures.learning_curves(
                {"unrelated tasks, a bottleneck of two": fits[0.0]}, len(TASKS), "validation error (MSE)"
            ),
            "transfer": figures.transfer(RELATEDNESS, gains),
        },
    )


def harmed_share(method: str, seed: int) -> float:
    """The share of a seed's pairs of opposed gradients for which the method's update raises one of the two losses."""
    pairs = problems.opposed_pairs(seed, PAIRS, dimensions=10)
    return float(np.mean([fitting.harms(pair, method, CALLS) for pair in pairs]))


def train_all(config: InterferenceConfig, relatedness: float) -> Fits:
    """Train on tasks of one relatedness with every seed: with all methods if the tasks are unrelated, else with two."""
    few = ("naive", fitting.ALONE)
    return fitting.collect(
        f"transfer, relatedness {relatedness:g}",
        (*METHODS, fitting.SAME_ROWS, fitting.ALONE) if relatedness == 0 else few,
        config.seed_numbers,
        lambda method, seed: train(config, relatedness, method, seed),
        config.quiet,
    )


def train(config: InterferenceConfig, relatedness: float, method: str, seed: int) -> fitting.Fit:
    """Train four regressions through the bottleneck with one method and one seed."""
    phase = problems.related_tasks(
        seed, tasks=len(TASKS), input_dim=10, relatedness=relatedness, train=96, guidance=24, steps=config.num_steps
    )
    if method == fitting.ALONE:
        return fitting.fit_alone(
            lambda task: fitting.seeded(lambda: problems.regressions(TASKS[task], 10, [16], 2), seed),
            [phase],
            learning_rate=config.learning_rate,
        )
    if method == fitting.SAME_ROWS:
        method, phase = "naive", fitting.without_guidance(phase)
    model = fitting.seeded(lambda: problems.regressions(TASKS, 10, [16], 2), seed)
    return fitting.fit_model(model, [phase], method, learning_rate=config.learning_rate, policy_lr=config.policy_lr)


def claims(harm: Errors, errors: Mapping[float, Errors]) -> list[report.Claim]:
    """The claims of this study.

    Args:
        harm: the share of harmed pairs, by method and seed.
        errors: the mean validation error, by relatedness, method and seed.
    """
    unrelated, related = errors[0.0], errors[1.0]
    return [
        report.lower(
            "unrelated tasks: naive multi-task training does worse than a model per task (negative transfer)",
            unrelated[fitting.ALONE],
            unrelated["naive"],
        ),
        report.lower(
            "tasks that read the same features: naive does better than a model per task",
            related["naive"],
            related[fitting.ALONE],
        ),
        report.lower("opposed gradients: static harms a task less often than naive", harm["static"], harm["naive"]),
        report.lower("opposed gradients: AIM harms a task less often than naive", harm["AIM"], harm["naive"]),
        report.lower(
            "unrelated tasks: static does better than naive", unrelated["static"], unrelated["naive"], robustness=True
        ),
        report.lower(
            "unrelated tasks: AIM does better than static", unrelated["AIM"], unrelated["static"], robustness=True
        ),
        report.lower(
            "unrelated tasks, on the rows that AIM trains on: AIM does better than naive",
            unrelated["AIM"],
            unrelated[fitting.SAME_ROWS],
        ),
    ]


def tables(harm: Errors, unrelated: Fits, errors: Mapping[float, Errors]) -> list[report.Table]:
    """The tables of the report; `unrelated` are the trainings on unrelated tasks, and `claims` explains the others."""
    return [
        report.Table(
            "Opposed gradients: share of pairs in which a task is harmed",
            ("harmed",),
            {method: {seed: [share] for seed, share in of.items()} for method, of in harm.items()},
        ),
        report.Table(
            "Unrelated tasks through a bottleneck: validation error",
            ("mean error", "worst task"),
            {m: {seed: [fit.final.mean(), fit.final.max()] for seed, fit in of.items()} for m, of in unrelated.items()},
        ),
        report.Table(
            "Naive and alone, by relatedness: mean validation error",
            tuple(f"relatedness {r:g}" for r in RELATEDNESS),
            {
                method: {seed: [errors[r][method][seed] for r in RELATEDNESS] for seed in harm["naive"]}
                for method in ("naive", fitting.ALONE)
            },
        ),
    ]
