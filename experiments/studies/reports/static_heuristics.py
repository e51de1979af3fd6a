"""The study of static heuristics: a projection rule on a problem where it helps, and on one where it gets stuck."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from experiments.studies import figures, fitting, many_seeds, policy_figures, problems, report
from experiments.studies.static_heuristics import StaticHeuristicsConfig

VALLEY_RATE = 0.05
DEGREES = 60.0
EARLY = 6  # "early" is after a sixth of the updates
BEHIND = 0.1  # AIM keeps up if its error exceeds the better of naive's and static's by at most this share
METHODS = tuple(fitting.METHODS)
DRIFTING = ("constant", "changing")

SETTING = """\
*Static* is PCGrad's rule: a component that conflicts with another task is always projected away.

**Valley**, the success scenario: two losses over two shared parameters, steep, curved and of unequal gradients, so that
the plain sum bounces between the walls. {steps} updates by Adam at {valley_rate} from random starts in the far corner;
48 rows of noisy data and 16 for guidance.

**Drift**, the failure scenario: two regressions on 8 inputs with one shared feature (a linear backbone 8-1) and a head
each. For {steps} updates both want the same feature; then the second one's changes to another, {degrees:.0f} degrees
away, for as many more. 192 rows and 32 for guidance in each phase, Adam at {learning_rate}.

Every method has the same rows, steps and learning rates; AIM holds the guidance rows out, the others train on them, and
its thresholds learn at {policy_lr} (the best of 0.003, 0.01 and 0.03 on seeds 100-109). `AIM with gate` is guided by
the sum of the logarithms of held-out losses. "Early" is after a sixth of the updates. Errors are means of the tasks'
validation losses after the last update; in the drift, 1 is a model that knows nothing and {floor:.2f} the best that one
feature can do, noise apart."""

Fits = dict[str, dict[int, fitting.Fit]]  # by method and seed
Errors = dict[str, dict[int, float]]  # by method and seed


def study(config: StaticHeuristicsConfig) -> report.Report:
    """Train all methods over all seeds in both scenarios and report."""
    change = config.num_steps  # after this many updates the relation of the drifting tasks changes
    valley, paths = train_valley(config)
    drift = train_drift(config)
    learned = policy_figures.learned(drift)

    def before(fit: fitting.Fit) -> float:
        return float(fit.errors[np.flatnonzero(fit.steps < change)[-1]].mean())

    rows = {
        method: {
            seed: [valley[method][seed].final.mean(), before(fit), fit.final.mean(), *fit.final]
            for seed, fit in drift[method].items()
        }
        for method in METHODS
    }
    early = {
        method: {seed: float(fit.errors[len(fit.steps) // EARLY].mean()) for seed, fit in valley[method].items()}
        for method in METHODS
    }
    return report.Report(
        title="Static heuristics: a rule that helps, until the tasks' relation changes",
        setting=SETTING.format(
            valley_rate=VALLEY_RATE,
            degrees=DEGREES,
            floor=(1 - math.cos(math.radians(DEGREES))) / 2,
            **config.settings,
        ),
        settings=config.settings,
        tables=[
            report.Table(
                "Validation error",
                ("valley", "drift: before", "drift: after", "constant task", "changing task"),
                rows,
            )
        ],
        verdicts=report.judge(claims(final_errors(valley), final_errors(drift), early)),
        figures={
            "learning_curves": figures.learning_curves(
                {"valley": valley, "drift (dotted: the relation changes)": drift},
                2,
                "validation error",
                change=change,
            ),
            "valley_paths": figures.valley_paths(
                {method: np.array(path) for method, path in paths.items()}, config.seed_numbers[0]
            ),
            "tau": policy_figures.thresholds(learned, DRIFTING, "Drift"),
            "tau_curves": policy_figures.threshold_curves(learned, DRIFTING, "Drift"),
        },
    )


def train_valley(config: StaticHeuristicsConfig) -> tuple[Fits, dict[str, list[list[float]]]]:
    """Cross the valley with every method and seed.

    Returns:
        The trainings, and for each method the points (2,) that the first seed passed.
    """
    seeds = config.seed_numbers
    paths: dict[str, list[list[float]]] = {}

    def cross(method: str, seed: int) -> fitting.Fit:
        model, phase = problems.valley_problem(seed, train=48, guidance=16, steps=config.num_steps)
        path: list[list[float]] = []
        fit = fitting.fit(
            model.losses,
            [model.theta],
            [model.theta],
            [phase],
            method,
            learning_rate=VALLEY_RATE,
            policy_lr=config.policy_lr,
            watch=lambda: path.append(model.theta.tolist()),
        )
        if seed == seeds[0]:
            paths[method] = path
        return fit

    return many_seeds.collect("valley", METHODS, seeds, cross, config.quiet), paths


def train_drift(config: StaticHeuristicsConfig) -> Fits:
    """Train on the drifting tasks with every method and seed."""

    def follow(method: str, seed: int) -> fitting.Fit:
        phases = problems.drifting_tasks(
            seed, input_dim=8, degrees=DEGREES, train=192, guidance=32, steps=config.num_steps
        )
        model = fitting.seeded(lambda: problems.regressions(DRIFTING, 8, [], 1), seed)
        return fitting.fit_model(model, phases, method, learning_rate=config.learning_rate, policy_lr=config.policy_lr)

    return many_seeds.collect("drift", METHODS, config.seed_numbers, follow, config.quiet)


def final_errors(fits: Fits) -> Errors:
    """The mean validation error over the tasks at the end of training, by method and seed."""
    return {method: {seed: fit.final.mean() for seed, fit in of.items()} for method, of in fits.items()}


def claims(in_valley: Errors, in_drift: Errors, early: Errors) -> list[report.Claim]:
    """The claims of this study, from the final errors in both scenarios and the early ones in the valley."""

    def keeps_up(score: Mapping[str, Mapping[int, float]], kind: str) -> dict[int, float]:
        better = {seed: min(score["naive"][seed], score["static"][seed]) for seed in score[kind]}
        return {seed: (1 + BEHIND) * best - score[kind][seed] for seed, best in better.items()}

    found = [
        report.lower(
            "valley: static does better than naive",
            in_valley["static"],
            in_valley["naive"],
            robustness=True,
            document="static helps",
        ),
        report.lower(
            "valley: static does better than naive early", early["static"], early["naive"], document="static early"
        ),
        report.lower(
            "drift: static does worse than naive", in_drift["naive"], in_drift["static"], document="static late"
        ),
    ]
    for kind in fitting.JUDGED:
        found += [
            report.lower(
                f"valley: {kind} does better than naive",
                in_valley[kind],
                in_valley["naive"],
                robustness=True,
                method=kind,
                document="resolves",
            ),
            report.lower(
                f"drift: {kind} does better than static",
                in_drift[kind],
                in_drift["static"],
                robustness=True,
                method=kind,
                document="adapts",
            ),
            report.Claim(
                f"valley: {kind} is within 10 % of the better of naive and static",
                keeps_up(in_valley, kind),
                method=kind,
            ),
            report.Claim(
                f"drift: {kind} is within 10 % of the better of naive and static", keeps_up(in_drift, kind), method=kind
            ),
        ]
    return found
