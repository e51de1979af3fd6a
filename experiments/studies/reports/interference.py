"""The study of interference: where each method's update goes, and what a shared backbone costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.studies import figures, fitting, many_seeds, problems, report
from experiments.studies.interference import InterferenceConfig
from mtrl.guidance import GuidanceLoss

TASKS = ("A", "B", "C", "D")
RELATEDNESS = (0.0, 0.5, 1.0)
PAIRS = 10
UNTRAINED = "AIM, untrained"
CALLS = 300
QUICK_CALLS = 20
METHODS = tuple(fitting.METHODS)

RULES: dict[str, tuple[str, GuidanceLoss]] = {
    "naive": ("naive", "sum"),
    "static": ("static", "sum"),
    fitting.PUBLISHED: (fitting.PUBLISHED, "sum"),
    "AIM": ("AIM", "sum"),
    fitting.UNIT_NORM: ("AIM", "unit_norm"),
    fitting.GATED: (fitting.GATED, "unit_norm"),
    "GradNorm": ("GradNorm", "sum"),
    "RGB": ("RGB", "sum"),
}
"""The method and the guidance behind each name where only the direction of an update is looked at."""

SETTING = """\
**Gradients.** {pairs} pairs of opposed gradients in 10 dimensions per seed (cosine -0.9 to -0.3; the second up to 30
times as long). *harmed* is the share of pairs for which the method's update raises one of the two losses to first
order. Methods that learn see the pair {calls} times first. The guidance of `AIM` is the sum of the two gradients, in
which the longer one decides; that of `{unit_norm}` and, in this part, of `AIM with gate` is the sum of the
two at length 1. `untrained` is AIM with thresholds of 0.

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
    calls = QUICK_CALLS if config.quick else CALLS

    def harmed(name: str, seed: int) -> float:
        return harmed_share(name, seed, calls)

    harm = many_seeds.collect("gradients", [*RULES, UNTRAINED], config.seed_numbers, harmed, config.quiet)
    fits = {relatedness: train_all(config, relatedness) for relatedness in RELATEDNESS}
    errors = {
        relatedness: {m: {seed: float(fit.final.mean()) for seed, fit in of.items()} for m, of in by_method.items()}
        for relatedness, by_method in fits.items()
    }
    arrows = {
        title: (minima, steepness, {name: direction(steepness[:, None] * minima, name, calls) for name in RULES})
        for title, (minima, steepness) in problems.bowls().items()
    }
    gains = [
        [errors[r]["naive"][seed] - errors[r][fitting.ALONE][seed] for seed in config.seed_numbers] for r in RELATEDNESS
    ]
    return report.Report(
        title="Interference: conflicting gradients and negative transfer",
        setting=SETTING.format(pairs=PAIRS, calls=calls, unit_norm=fitting.UNIT_NORM, **config.settings),
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


def direction(gradients: fitting.Array, name: str, calls: int) -> fitting.Array:
    """The settled update of the method of this name in `RULES`."""
    method, guidance_loss = RULES[name]
    return fitting.settled(gradients, method, calls, guidance_loss)


def harmed_share(name: str, seed: int, calls: int) -> float:
    """The share of a seed's pairs of opposed gradients for which the method's update raises one of the two losses."""
    pairs = problems.opposed_pairs(seed, PAIRS, dimensions=10)
    method, guidance_loss = RULES.get(name, ("AIM", "sum"))
    calls = 1 if name == UNTRAINED else calls
    return float(np.mean([fitting.harms(pair, method, calls, guidance_loss) for pair in pairs]))


def train_all(config: InterferenceConfig, relatedness: float) -> Fits:
    """Train on tasks of one relatedness with every seed: with all methods if the tasks are unrelated, else with two."""
    few = ("naive", fitting.ALONE)
    return many_seeds.collect(
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
    naive, same_rows, alone = unrelated["naive"], unrelated[fitting.SAME_ROWS], unrelated[fitting.ALONE]
    found = [
        report.Claim("opposed gradients: naive harms a task", dict(harm["naive"]), document="harm"),
        report.lower("opposed gradients: static harms a task less often than naive", harm["static"], harm["naive"]),
        report.lower(
            "unrelated tasks: naive multi-task training does worse than a model per task (negative transfer)",
            alone,
            naive,
            document="negative transfer",
        ),
        report.lower(
            "tasks that read the same features: naive does better than a model per task",
            related["naive"],
            related[fitting.ALONE],
        ),
        report.lower("unrelated tasks: static does better than naive", unrelated["static"], naive, robustness=True),
    ]
    for kind in fitting.JUDGED:
        aim = unrelated[kind]
        found += [
            report.lower(
                f"opposed gradients: {kind} harms a task less often than naive",
                harm[kind],
                harm["naive"],
                method=kind,
                document="resolves",
            ),
            report.lower(
                f"unrelated tasks: {kind} does better than static",
                aim,
                unrelated["static"],
                robustness=True,
                method=kind,
            ),
            report.lower(
                f"unrelated tasks, on the rows that AIM trains on: {kind} does better than naive",
                aim,
                same_rows,
                method=kind,
                document="prevents",
            ),
        ]
    sums, unit = harm["AIM"], harm[fitting.UNIT_NORM]
    found.append(report.lower("opposed gradients: AIM harms less often with unit-norm guidance", unit, sums))
    return found


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
