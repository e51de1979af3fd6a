"""`python -m experiments.studies.interference`: conflicting gradients, and negative transfer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.studies.command import StudyConfig, study_command

if TYPE_CHECKING:
    from experiments.studies.report import Report

TASKS = ("A", "B", "C", "D")
RELATEDNESS = (0.0, 0.5, 1.0)
PAIRS = 10
CALLS = 300

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


@dataclass(frozen=True)
class InterferenceConfig(StudyConfig):
    """Show what conflicting gradients do: where each method goes, and what sharing a backbone costs."""

    steps: int = 200
    """Updates of a training."""

    output_dir: Path = Path("results/analysis/studies/interference")
    """Where report.md, results.json and the figures go."""


def study(config: InterferenceConfig) -> Report:
    """Measure directions and transfer over all seeds and report."""
    import numpy as np  # noqa: PLC0415 - torch and its like load only when there is something to train

    from experiments.studies import figures, fitting, problems, report  # noqa: PLC0415

    seeds, methods = config.seed_numbers, list(fitting.METHODS)

    def harmed(method: str, seed: int) -> float:
        pairs = problems.opposed_pairs(seed, PAIRS, dimensions=10)
        return float(np.mean([fitting.harms(pair, method, CALLS) for pair in pairs]))

    def train(relatedness: float, method: str, seed: int) -> fitting.Fit:
        phase = problems.related_tasks(
            seed,
            tasks=len(TASKS),
            input_dim=10,
            relatedness=relatedness,
            train=96,
            guidance=24,
            steps=config.num_steps,
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

    harm = fitting.collect("gradients", methods, seeds, harmed, config.quiet)
    fits = {
        r: fitting.collect(
            f"transfer, relatedness {r:g}",
            [*methods, fitting.SAME_ROWS, fitting.ALONE] if r == 0 else ["naive", fitting.ALONE],
            seeds,
            lambda method, seed, r=r: train(r, method, seed),  # type: ignore[misc]
            config.quiet,
        )
        for r in RELATEDNESS
    }
    error = {
        r: {method: {seed: float(fit.final.mean()) for seed, fit in of.items()} for method, of in by_method.items()}
        for r, by_method in fits.items()
    }
    unrelated, related = error[0.0], error[1.0]
    claims = [
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
    arrows = {
        title: (minima, steepness, {m: fitting.settled(steepness[:, None] * minima, m, CALLS) for m in methods})
        for title, (minima, steepness) in problems.bowls().items()
    }
    gains = [[error[r]["naive"][seed] - error[r][fitting.ALONE][seed] for seed in seeds] for r in RELATEDNESS]
    return report.Report(
        title="Interference: conflicting gradients and negative transfer",
        setting=SETTING.format(pairs=PAIRS, calls=CALLS, **config.settings),
        settings=config.settings,
        tables=[
            report.Table(
                "Opposed gradients: share of pairs in which a task is harmed",
                ("harmed",),
                {method: {seed: [share] for seed, share in of.items()} for method, of in harm.items()},
            ),
            report.Table(
                "Unrelated tasks through a bottleneck: validation error",
                ("mean error", "worst task"),
                {m: {seed: [f.final.mean(), f.final.max()] for seed, f in of.items()} for m, of in fits[0.0].items()},
            ),
            report.Table(
                "Naive and alone, by relatedness: mean validation error",
                tuple(f"relatedness {r:g}" for r in RELATEDNESS),
                {
                    method: {seed: [error[r][method][seed] for r in RELATEDNESS] for seed in seeds}
                    for method in ("naive", fitting.ALONE)
                },
            ),
        ],
        verdicts=report.judge(claims),
        figures={
            "gradient_arrows": figures.gradient_arrows(arrows),
            "learning_curves": figures.learning_curves(
                {"unrelated tasks, a bottleneck of two": fits[0.0]}, len(TASKS), "validation error (MSE)"
            ),
            "transfer": figures.transfer(RELATEDNESS, gains),
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return study_command("interference", study, InterferenceConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
