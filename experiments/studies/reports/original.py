"""The study of the original: the two experiments of AIM's document, on several seeds and with held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from experiments.studies import figures, fitting, many_seeds, policy_figures, report
from experiments.studies import original_problems as problems
from experiments.studies.fitting import CLEAN, GATED, JUDGED, PUBLISHED
from experiments.studies.original import OriginalConfig
from experiments.supervised.data import Samples

Heads = Literal["frozen", "trained"]

NAMES = (*problems.REAL, "noise")
WORDS = ("sentiment", "spam")
FASTER = 5  # the learning rate of the mixed signals is this many times that of the sabotage

SETTING = """\
The two experiments of the document on AIM, rebuilt from its description: {rows} rows of 20 features, of which AIM holds
40 out for guidance; two shared layers of 64 rectified units and a linear head for each task; {steps} full-batch updates
by Adam at {learning_rate} (mixed signals: five times that). Everybody trains on the same 160 rows. The document has no
ten seeds, no rows that nobody trained on (here 512), and no naive training beside the sabotage.

**Sabotage**: three linear regressions and a task of pure noise; targets are standardised. **Mixed signals**: two linear
regressions, one on the first ten "words" and one on the others.

`AIM as published` has its public code's settings: thresholds at 0.01, magnitude 0.01, progress 0.1. Its guidance loss
is evaluated at the present weights, which do not depend on tau, so that guidance has no effect whatever. The public
code does not train the heads: *frozen*. With *trained* heads every head gets its own task's gradient. Errors are mean
squared errors after the last update; 1 is a model that knows nothing. *memorised* is 1 minus the noise task's error on
the rows that are trained on: what is learned there is of no use anywhere else. *own words* is the share of a task's
mean |d answer / d word| that falls on its own ten words."""


@dataclass(frozen=True)
class Outcome:
    """A training, and what is measured on its last model."""

    fit: fitting.Fit
    training: fitting.Array  # (T,), losses on the rows that are trained on
    own_words: float = np.nan  # mean over tasks


Outcomes = dict[str, dict[int, Outcome]]  # by method and seed


def study(config: OriginalConfig) -> report.Report:
    """Repeat both experiments with frozen and with trained heads, and report."""
    sabotage = {heads: _collect(config, "sabotage", heads) for heads in get_args(Heads)}
    mixed = {heads: _collect(config, "mixed signals", heads) for heads in get_args(Heads)}
    of_aim = {f"{PUBLISHED}, {heads} heads": _fits(sabotage[heads])[PUBLISHED] for heads in sabotage}
    of_aim[f"{GATED}, trained heads"] = _fits(sabotage["trained"])[GATED]
    learned = policy_figures.learned(of_aim)
    return report.Report(
        title="Original: the experiments of the document, on ten seeds",
        setting=SETTING.format(rows=problems.TRAIN + problems.GUIDANCE, **config.settings),
        settings=config.settings,
        tables=[table for heads in get_args(Heads) for table in tables(heads, sabotage[heads], mixed[heads])],
        findings=findings(sabotage),
        verdicts=report.judge([claim for heads in get_args(Heads) for claim in claims(heads, sabotage, mixed)]),
        figures={
            "learning_curves": figures.learning_curves(
                {f"three real tasks, {heads} heads": _fits(of) for heads, of in sabotage.items()},
                len(problems.REAL),
                "validation error (MSE)",
            ),
            "memorised": figures.bars(
                {heads: {m: memorised(of[m]) for m in of if m != CLEAN} for heads, of in sabotage.items()},
                "share of the noise that is memorised",
                "Sabotage: what is learned of the noise task's training rows",
            ),
            "tau": policy_figures.thresholds(learned, NAMES, "Sabotage"),
            "tau_curves": policy_figures.threshold_curves(learned, NAMES, "Sabotage"),
        },
    )


def _collect(config: OriginalConfig, experiment: str, heads: Heads) -> Outcomes:
    run = train_sabotage if experiment == "sabotage" else train_mixed_signals
    methods = [CLEAN] * (experiment == "sabotage") + ["naive", "static", *JUDGED]
    return many_seeds.collect(
        f"{experiment}, {heads} heads", methods, config.seed_numbers, partial(run, config, heads), config.quiet
    )


def train_sabotage(config: OriginalConfig, heads: Heads, method: str, seed: int) -> Outcome:
    """Train three regressions beside noise, or without it."""
    phase = problems.sabotage(seed, config.num_steps)
    if method == CLEAN:
        phase = fitting.of_tasks(phase, range(len(problems.REAL)))
    return _train(phase, heads, "naive" if method == CLEAN else method, seed, config.learning_rate)[0]


def train_mixed_signals(config: OriginalConfig, heads: Heads, method: str, seed: int) -> Outcome:
    """Train sentiment and spam, and measure which words each of them goes by."""
    phase, lanes = problems.mixed_signals(seed, config.num_steps)
    outcome, model = _train(phase, heads, method, seed, FASTER * config.learning_rate)
    inputs = phase.validation.features.clone().requires_grad_()
    shares = []
    for answer, lane in zip(model(inputs), lanes, strict=True):
        (slope,) = torch.autograd.grad(answer.sum(), inputs, retain_graph=True)
        use = slope.abs().mean(0).numpy()
        shares.append(use @ lane / use.sum())
    return Outcome(outcome.fit, outcome.training, float(np.mean(shares)))


def _train(
    phase: fitting.Phase, heads: Heads, method: str, seed: int, learning_rate: float
) -> tuple[Outcome, problems.Model]:
    model = fitting.seeded(lambda: problems.Model(len(phase.train.targets)), seed)
    model.heads.requires_grad_(heads == "trained")

    def losses(samples: Samples) -> list[Tensor]:
        answers = model(samples.features)
        return [(answer - target).pow(2).mean() for answer, target in zip(answers, samples.targets, strict=True)]

    fit = fitting.fit(
        losses,
        model.encoder.parameters(),
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        [phase if method in JUDGED else fitting.without_guidance(phase)],
        method,
        learning_rate=learning_rate,
        policy_lr=0.01,
    )
    with torch.no_grad():
        return Outcome(fit, torch.stack(losses(phase.train)).numpy()), model


def strictness(tau: fitting.Array) -> float:
    """Mean threshold of pairs with the noise task, in its row and column, minus the mean among the real tasks."""
    pairs = ~np.eye(len(tau), dtype=bool)
    noise = np.zeros_like(pairs)
    noise[-1] = noise[:, -1] = True
    return float(tau[pairs & noise].mean() - tau[pairs & ~noise].mean())


def memorised(of: Mapping[int, Outcome]) -> dict[int, float]:
    """1 minus the noise task's error on training rows, by seed."""
    return {seed: 1 - float(outcome.training[-1]) for seed, outcome in of.items()}


def real_error(of: Mapping[int, Outcome]) -> dict[int, float]:
    """The mean held-out error of the real tasks, by seed."""
    return {seed: float(outcome.fit.final[: len(problems.REAL)].mean()) for seed, outcome in of.items()}


def _strictness(of: Mapping[int, Outcome]) -> dict[int, float]:
    return {seed: strictness(o.fit.tau) for seed, o in of.items() if o.fit.tau is not None}


def _fits(outcomes: Outcomes) -> dict[str, dict[int, fitting.Fit]]:
    return {method: {seed: outcome.fit for seed, outcome in of.items()} for method, of in outcomes.items()}


def tables(heads: Heads, sabotage: Outcomes, mixed: Outcomes) -> list[report.Table]:
    """The tables of both experiments."""
    rows = {
        method: {
            seed: [
                error,
                np.nan if method == CLEAN else memorised(sabotage[method])[seed],
                _strictness(sabotage[method]).get(seed, np.nan),
            ]
            for seed, error in real_error(sabotage[method]).items()
        }
        for method in sabotage
    }
    of_mixed = {
        method: {seed: [*outcome.fit.final, outcome.own_words] for seed, outcome in of.items()}
        for method, of in mixed.items()
    }
    columns = ("held-out error of real tasks", "noise memorised", "tau: noise minus real")
    return [
        report.Table(f"Sabotage, {heads} heads", columns, rows),
        report.Table(f"Mixed signals, {heads} heads: held-out error", (*WORDS, "own words"), of_mixed),
    ]


def findings(sabotage: Mapping[Heads, Outcomes]) -> Sequence[str]:
    """Sentences that count seeds."""
    found = []
    for heads, outcomes in sabotage.items():
        strict = np.array(list(_strictness(outcomes[PUBLISHED]).values()))
        aim, naive = (np.mean(list(memorised(outcomes[method]).values())) for method in (PUBLISHED, "naive"))
        found.append(
            f"With {heads} heads the heat map holds on {int((strict > 0).sum())} of {len(strict)} seeds: tau of AIM as "
            f"published is stricter with the noise task than among the real ones. Of the noise, AIM as published "
            f"memorises {aim:.3f} and naive training {naive:.3f}."
        )
    return found


def claims(heads: Heads, sabotage: Mapping[Heads, Outcomes], mixed: Mapping[Heads, Outcomes]) -> list[report.Claim]:
    """The claims of this study for one kind of heads."""
    noisy, words = sabotage[heads], mixed[heads]
    own = {m: {seed: outcome.own_words for seed, outcome in of.items()} for m, of in words.items()}
    errors = {m: {seed: float(outcome.fit.final.mean()) for seed, outcome in of.items()} for m, of in words.items()}
    naive, say = noisy["naive"], f"{heads} heads:"
    found = [
        report.lower(
            f"{say} the noise task harms naive training",
            real_error(noisy[CLEAN]),
            real_error(naive),
            document="noise harms",
        )
    ]
    for kind in JUDGED:
        strict = {
            seed: float(o.fit.tau[~np.eye(2, dtype=bool)].mean())
            for seed, o in words[kind].items()
            if o.fit.tau is not None
        }
        found += [
            report.Claim(
                f"{say} tau of {kind} is stricter with the noise task than among the real ones",
                _strictness(noisy[kind]),
                document="strict",
                method=kind,
            ),
            report.lower(
                f"{say} {kind} memorises less of the noise than naive",
                memorised(noisy[kind]),
                memorised(naive),
                document="quarantines",
                method=kind,
            ),
            report.lower(
                f"{say} {kind} has a lower error on real tasks than naive",
                real_error(noisy[kind]),
                real_error(naive),
                document="protects",
                method=kind,
            ),
            report.Claim(f"{say} tau of {kind} is above 0 between sentiment and spam", strict, method=kind),
            report.lower(
                f"{say} {kind} keeps lanes more than naive", own["naive"], own[kind], document="lanes", method=kind
            ),
            report.lower(
                f"{say} {kind} has a lower error on mixed signals than naive",
                errors[kind],
                errors["naive"],
                document="confusion",
                method=kind,
            ),
        ]
    return found
