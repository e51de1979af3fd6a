"""The study of sabotage: four regressions and a task of pure noise on one backbone."""

from __future__ import annotations

import numpy as np

from experiments.studies import figures, fitting, problems, report
from experiments.studies.sabotage import SabotageConfig

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


def study(config: SabotageConfig) -> report.Report:
    """Train all methods over all seeds and report."""
    methods = [fitting.CLEAN, *fitting.METHODS, fitting.SAME_ROWS]
    fits = fitting.collect(
        "sabotage", methods, config.seed_numbers, lambda method, seed: train(config, method, seed), config.quiet
    )
    rows = {method: {seed: row(fit) for seed, fit in by_seed.items()} for method, by_seed in fits.items()}
    errors = {method: {seed: numbers[0] for seed, numbers in by_seed.items()} for method, by_seed in rows.items()}
    taus = {seed: fit.tau for seed, fit in fits["AIM"].items() if fit.tau is not None}
    return report.Report(
        title="Sabotage: four regressions and a task of pure noise",
        setting=SETTING.format(rows=config.train + config.guidance, **config.settings),
        settings=config.settings,
        tables=[report.Table("Validation error of the four real tasks", ("mean error", "worst task", "noise"), rows)],
        verdicts=report.judge(claims(errors, {seed: strictness(tau) for seed, tau in taus.items()})),
        figures={
            "learning_curves": figures.learning_curves(
                {"four real tasks, beside one of noise": fits}, len(REAL), "validation error (MSE)"
            ),
            "tau": figures.learned_policy(fits["AIM"].values(), NAMES, "What AIM learned"),
        },
    )


def train(config: SabotageConfig, method: str, seed: int) -> fitting.Fit:
    """Train with one method and one seed."""
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
    return fitting.fit_model(model, [phase], balancer, learning_rate=config.learning_rate, policy_lr=config.policy_lr)


def row(fit: fitting.Fit) -> list[float]:
    """Mean and worst error of the real tasks, and the noise task's coefficient relative to their mean coefficient."""
    real = fit.final[: len(REAL)]
    noise = fit.weights[-1] / fit.weights[:-1].mean() if len(fit.weights) == len(NAMES) else np.nan
    return [real.mean(), real.max(), noise]


def strictness(tau: fitting.Array) -> float:
    """Mean threshold of the noise task towards the real tasks, minus the mean threshold among the real tasks."""
    among_real = ~np.eye(len(NAMES), dtype=bool)
    among_real[-1] = among_real[:, -1] = False
    return float(tau[-1, :-1].mean() - tau[among_real].mean())


def claims(errors: dict[str, dict[int, float]], stricter: dict[int, float]) -> list[report.Claim]:
    """The claims of this study.

    Args:
        errors: the mean error of the real tasks, by method and seed.
        stricter: see `strictness`, by seed.
    """
    naive, clean, static, aim = (errors[name] for name in ("naive", fitting.CLEAN, "static", "AIM"))
    return [
        report.lower("the noise task harms naive training", clean, naive),
        report.lower("static does better than naive", static, naive, robustness=True),
        report.lower("AIM does better than static", aim, static, robustness=True),
        report.Claim(
            "AIM quarantines: it undoes at least half of the harm",
            {seed: (naive[seed] + clean[seed]) / 2 - aim[seed] for seed in aim},
        ),
        report.lower("on the rows that AIM trains on, AIM does better than naive", aim, errors[fitting.SAME_ROWS]),
        report.Claim("AIM's tau is stricter with the noise task than among the real ones", stricter),
    ]
