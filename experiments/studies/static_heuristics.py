"""`python -m experiments.studies.static_heuristics`: where a fixed projection rule helps, and where it gets stuck."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.studies.command import StudyConfig, study_command

if TYPE_CHECKING:
    from experiments.studies.report import Report

VALLEY_RATE = 0.05
DEGREES = 60.0
BEHIND = 0.1  # how far behind the better of naive and static still counts as keeping up

SETTING = """\
*Static* is PCGrad's rule: a component that conflicts with another task is always projected away.

**Valley**, the success scenario: two losses over two shared parameters, steep, curved and of unequal gradients, so that
the plain sum bounces between the walls. {steps} updates by Adam at {valley_rate} from random starts in the far corner;
48 rows of noisy data and 16 for guidance.

**Drift**, the failure scenario: two regressions on 8 inputs with one shared feature (a linear backbone 8-1) and a head
each. For {steps} updates both want the same feature; then the second one's changes to another, {degrees:.0f} degrees
away, for as many more. 192 rows and 32 for guidance in each phase, Adam at {learning_rate}.

Every method has the same rows, steps and learning rates; AIM holds the guidance rows out, the others train on them, and
its thresholds learn at {policy_lr} (the best of 0.003, 0.01 and 0.03 on seeds 100-109). Errors are means of the tasks'
validation losses after the last update; in the drift, 1 is a model that knows nothing and {floor:.2f} the best that one
feature can do, noise apart."""


@dataclass(frozen=True)
class StaticHeuristicsConfig(StudyConfig):
    """Compare a fixed projection rule where it helps, and where the tasks' relation changes in the course of time."""

    output_dir: Path = Path("results/analysis/studies/static_heuristics")
    """Where report.md, results.json and the figures go."""


def study(config: StaticHeuristicsConfig) -> Report:
    """Train all methods over all seeds in both scenarios and report."""
    import math  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415 - torch and its like load only when there is something to train

    from experiments.studies import figures, fitting, problems, report  # noqa: PLC0415

    change = config.num_steps  # the update after which the tasks of the drift relate differently
    seeds = config.seed_numbers
    paths: dict[str, list[list[float]]] = {}  # of the first seed, through the valley

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

    def follow(method: str, seed: int) -> fitting.Fit:
        phases = problems.drifting_tasks(seed, input_dim=8, degrees=DEGREES, train=192, guidance=32, steps=change)
        model = fitting.seeded(lambda: problems.regressions(("constant", "changing"), 8, [], 1), seed)
        return fitting.fit_model(model, phases, method, learning_rate=config.learning_rate, policy_lr=config.policy_lr)

    methods = list(fitting.METHODS)
    valley = fitting.collect("valley", methods, seeds, cross, config.quiet)
    drift = fitting.collect("drift", methods, seeds, follow, config.quiet)

    def before(fit: fitting.Fit) -> float:
        return float(fit.errors[np.flatnonzero(fit.steps < change)[-1]].mean())

    rows: dict[str, dict[int, list[float]]] = {
        method: {
            seed: [valley[method][seed].final.mean(), before(fit), fit.final.mean(), *fit.final]
            for seed, fit in drift[method].items()
        }
        for method in methods
    }

    def error(column: int) -> dict[str, dict[int, float]]:
        return {method: {seed: row[column] for seed, row in by_seed.items()} for method, by_seed in rows.items()}

    in_valley, in_drift = error(0), error(2)

    def keeps_up(score: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
        return {
            seed: (1 + BEHIND) * min(score["naive"][seed], score["static"][seed]) - score["AIM"][seed]
            for seed in score["AIM"]
        }

    claims = [
        report.lower("valley: static does better than naive", in_valley["static"], in_valley["naive"], robustness=True),
        report.lower("drift: static does worse than naive", in_drift["naive"], in_drift["static"]),
        report.lower("valley: AIM does better than naive", in_valley["AIM"], in_valley["naive"], robustness=True),
        report.lower("drift: AIM does better than static", in_drift["AIM"], in_drift["static"], robustness=True),
        report.Claim("valley: AIM is within 10 % of the better of naive and static", keeps_up(in_valley)),
        report.Claim("drift: AIM is within 10 % of the better of naive and static", keeps_up(in_drift)),
    ]
    taus = [fit.tau for fit in drift["AIM"].values() if fit.tau is not None]
    interventions = [fit.intervention for fit in drift["AIM"].values() if fit.intervention is not None]
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
        verdicts=report.judge(claims),
        figures={
            "learning_curves": figures.learning_curves(
                {"valley": valley, "drift (dotted: the relation changes)": drift},
                2,
                "validation error",
                change=change,
            ),
            "valley_paths": figures.valley_paths({method: np.array(path) for method, path in paths.items()}, seeds[0]),
            "tau": figures.heat_maps(
                {
                    "thresholds tau": np.mean(taus, 0),
                    "interventions w (0 keeps, 1 removes)": np.mean(interventions, 0),
                },
                ("constant", "changing"),
                f"What AIM learned of the drift, mean over {len(taus)} seeds",
            ),
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return study_command("static_heuristics", study, StaticHeuristicsConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
