"""`python -m experiments.studies.sabotage`: four regressions and a task of pure noise. Is the noise quarantined?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.studies.command import StudyConfig, study_command

if TYPE_CHECKING:
    from experiments.studies.report import Report

REAL = ("A", "B", "C", "D")
NAMES = (*REAL, "noise")

SETTING = """\
Four regressions that share 90 % of their features (`relatedness` 0.9) and one task whose targets are random numbers, on
a backbone 10-16-4 with a linear head each; targets have mean 0 and deviation 1. {train} rows to train on and {guidance}
that AIM holds out for guidance, of all five tasks: nobody is told which one is noise. The other methods train on all
{rows} rows, except `naive, AIM's rows`, which shows what holding out costs. {steps} full-batch updates by Adam at
{learning_rate} for every method; AIM's thresholds learn at {policy_lr}, the better of 0.01 and 0.05 on seeds
100-105. Errors are mean squared errors on 512 validation rows after the last update, 1 being a model that knows
nothing. *noise* is the coefficient of the noise task's gradient relative to the real tasks', late in training: 1 is
equal, 0 is quarantined."""


@dataclass(frozen=True)
class SabotageConfig(StudyConfig):
    """Train four regressions beside a task of pure noise, and see who lets it into the shared backbone."""

    policy_lr: float = 5e-2
    """Learning rate of AIM's thresholds."""

    output_dir: Path = Path("results/analysis/studies/sabotage")
    """Where report.md, results.json and the figures go."""

    train: int = 192
    """Rows that every method trains on."""

    guidance: int = 48
    """Rows that AIM holds out, and the others train on, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "guidance"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 1 and 100000")


def study(config: SabotageConfig) -> Report:
    """Train all methods over all seeds and report."""
    import numpy as np  # noqa: PLC0415 - torch and its like load only when there is something to train

    from experiments.studies import figures, fitting, problems, report  # noqa: PLC0415

    def train(method: str, seed: int) -> fitting.Fit:
        phase = problems.related_tasks(
            seed,
            tasks=len(REAL),
            input_dim=10,
            relatedness=0.9,
            train=config.train,
            guidance=config.guidance,
            steps=config.num_steps,
        )
        names = REAL if method == fitting.CLEAN else NAMES
        if method != fitting.CLEAN:
            phase = problems.with_noise_task(phase, seed)
        if method == fitting.SAME_ROWS:
            phase = fitting.without_guidance(phase)
        model = fitting.seeded(lambda: problems.regressions(names, 10, [16], 4), seed)
        balancer = method if method in fitting.METHODS else "naive"
        return fitting.fit_model(
            model, [phase], balancer, learning_rate=config.learning_rate, policy_lr=config.policy_lr
        )

    methods = [fitting.CLEAN, *fitting.METHODS, fitting.SAME_ROWS]
    fits = fitting.collect("sabotage", methods, config.seed_numbers, train, config.quiet)

    def row(fit: fitting.Fit) -> list[float]:
        real = fit.final[: len(REAL)]
        noise = fit.weights[-1] / fit.weights[:-1].mean() if len(fit.weights) == len(NAMES) else np.nan
        return [real.mean(), real.max(), noise]

    rows = {method: {seed: row(fit) for seed, fit in by_seed.items()} for method, by_seed in fits.items()}
    error = {method: {seed: numbers[0] for seed, numbers in by_seed.items()} for method, by_seed in rows.items()}
    naive, clean, static, aim = (error[name] for name in ("naive", fitting.CLEAN, "static", "AIM"))
    taus = {seed: fit.tau for seed, fit in fits["AIM"].items() if fit.tau is not None}
    of_two_real = ~np.eye(len(NAMES), dtype=bool)
    of_two_real[-1] = of_two_real[:, -1] = False
    stricter = {seed: float(tau[-1, :-1].mean() - tau[of_two_real].mean()) for seed, tau in taus.items()}
    claims = [
        report.lower("the noise task harms naive training", clean, naive),
        report.lower("static does better than naive", static, naive, robustness=True),
        report.lower("AIM does better than static", aim, static, robustness=True),
        report.Claim(
            "AIM quarantines: it undoes at least half of the harm",
            {seed: (naive[seed] + clean[seed]) / 2 - aim[seed] for seed in aim},
        ),
        report.lower("on the rows that AIM trains on, AIM does better than naive", aim, error[fitting.SAME_ROWS]),
        report.Claim("AIM's tau is stricter with the noise task than among the real ones", stricter),
    ]
    interventions = [fit.intervention for fit in fits["AIM"].values() if fit.intervention is not None]
    return report.Report(
        title="Sabotage: four regressions and a task of pure noise",
        setting=SETTING.format(rows=config.train + config.guidance, **config.settings),
        settings=config.settings,
        tables=[report.Table("Validation error of the four real tasks", ("mean error", "worst task", "noise"), rows)],
        verdicts=report.judge(claims),
        figures={
            "learning_curves": figures.learning_curves(
                {"four real tasks, beside one of noise": fits}, len(REAL), "validation error (MSE)"
            ),
            "tau": figures.heat_maps(
                {
                    "thresholds tau": np.mean(list(taus.values()), 0),
                    "interventions w (0 keeps, 1 removes)": np.mean(interventions, 0),
                },
                NAMES,
                f"What AIM learned, mean over {len(taus)} seeds",
            ),
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return study_command("sabotage", study, SabotageConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
