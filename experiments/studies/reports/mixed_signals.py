"""The study of mixed signals: sentiment and spam on one backbone, each with words of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from experiments.studies import figures, fitting, many_seeds, policy_figures, problems, report
from experiments.studies.mixed_signals import MixedSignalsConfig

TASKS = ("sentiment", "spam")
BOTTLENECK = 1  # features that the backbone hands to both heads

SETTING = """\
Messages of two sentences from `experiments/studies/texts.tsv`: one has a tone (positive or negative), the other is spam
or not. As bags of words the two tasks have disjoint feature sets ({words} and {others} words). In the data spam sounds
positive four times out of five, so that the words of one task are a shortcut for the other; in the 512 validation
messages tone and kind are independent. Backbone {vocabulary}-16-{bottleneck} with a linear head for each task: two
tasks through so few features that sharing costs something, and there is something to balance. {train} messages to train
on and {guidance}, of the same sort, that AIM holds out for guidance; the other methods train on all {rows}, except
`naive, AIM's rows`, which shows what holding out costs. `alone` is a backbone for each task. {steps} full-batch updates
by Adam at {learning_rate} for every method; AIM's thresholds learn at {policy_lr} (0.02 and 0.1 were alike on seeds
100-107). *own words* is the share of a task's gradient saliency, mean |d logit / d word| over validation messages, that
falls on its own words: 0.5 is confusion, 1 is a task in its lane."""

Scores = dict[str, dict[int, float]]  # by method and seed


def study(config: MixedSignalsConfig) -> report.Report:
    """Train all methods over all seeds and report."""
    methods = [*fitting.METHODS, fitting.SAME_ROWS, fitting.ALONE]
    results = many_seeds.collect(
        "mixed signals", methods, config.seed_numbers, lambda method, seed: train(config, method, seed), config.quiet
    )
    rows = {
        method: {seed: [*right, *shares] for seed, (_, right, shares) in by_seed.items()}
        for method, by_seed in results.items()
    }
    accuracy = {name: {seed: float(np.mean(row[:2])) for seed, row in of.items()} for name, of in rows.items()}
    own_words = {name: {seed: float(np.mean(row[2:])) for seed, row in of.items()} for name, of in rows.items()}
    fits = {method: {seed: fit for seed, (fit, _, _) in by_seed.items()} for method, by_seed in results.items()}
    example = problems.messages(config.seed_numbers[0], train=1, guidance=1, steps=1)
    learned = policy_figures.learned(fits)
    words, others = (int(lane.sum()) for lane in example.lanes)
    return report.Report(
        title="Mixed signals: sentiment and spam on one backbone",
        setting=SETTING.format(
            rows=config.train + config.guidance,
            vocabulary=example.num_words,
            bottleneck=BOTTLENECK,
            words=words,
            others=others,
            **config.settings,
        ),
        settings=config.settings,
        tables=[
            report.Table(
                "Accuracy and word use on validation messages",
                ("sentiment right", "spam right", "sentiment: own words", "spam: own words"),
                rows,
            )
        ],
        verdicts=report.judge(claims(own_words, accuracy)),
        figures={
            "learning_curves": figures.learning_curves(
                {"sentiment and spam": fits}, len(TASKS), "validation error (nats)"
            ),
            "tau": policy_figures.thresholds(learned, TASKS, "Mixed signals"),
            "tau_curves": policy_figures.threshold_curves(learned, TASKS, "Mixed signals"),
            "feature_use": figures.feature_use(
                {method: [row[2:] for row in by_seed.values()] for method, by_seed in rows.items()}, TASKS
            ),
        },
    )


def train(config: MixedSignalsConfig, method: str, seed: int) -> tuple[fitting.Fit, list[float], list[float]]:
    """Train with one method and one seed.

    Returns:
        The training, each task's share of right answers, and the share of each task's word use on its own words.
    """
    data = problems.messages(seed, train=config.train, guidance=config.guidance, steps=config.num_steps)
    phase = fitting.without_guidance(data.phase) if method == fitting.SAME_ROWS else data.phase
    rates = {"learning_rate": config.learning_rate, "policy_lr": config.policy_lr}
    # "Alone" trains one model per task; all other methods train one model on both tasks.
    models = [[0], [1]] if method == fitting.ALONE else [[0, 1]]
    use, right, fits = np.zeros((2, data.num_words)), np.zeros(2), []
    for tasks in models:
        make = partial(problems.classifications, TASKS, tasks, data.num_words, [16], BOTTLENECK)
        model = fitting.seeded(make, seed)
        balancer = method if method in fitting.METHODS else "naive"
        part = fitting.of_tasks(phase, tasks)
        fits.append(fitting.fit_model(model, [part], balancer, **rates))
        use[tasks] = problems.word_use(model, part.validation.features)
        right[tasks] = problems.accuracies(model, part.validation)
    if not (use.sum(1) > 0).all():
        raise FloatingPointError("the answers of a task depend on no word")
    shares = [float(slope @ lane / slope.sum()) for slope, lane in zip(use, data.lanes, strict=True)]
    return fitting.side_by_side(fits), right.tolist(), shares


def claims(own_words: Scores, accuracy: Scores) -> list[report.Claim]:
    """The claims of this study, from two scores of which higher is better."""

    def higher(text: str, score: Scores, better: str, worse: str, **of_claim: Any) -> report.Claim:
        return report.lower(text, score[worse], score[better], **of_claim)

    same_rows, alone = fitting.SAME_ROWS, fitting.ALONE
    found = [
        higher("there is something to balance: a backbone for each task is more often right", accuracy, alone, "naive"),
        higher("a backbone for each task keeps lanes more than naive", own_words, alone, "naive"),
        higher("static keeps tasks in their lanes more than naive", own_words, "static", "naive", robustness=True),
        higher("static is more often right than naive", accuracy, "static", "naive", robustness=True),
    ]
    for kind in fitting.JUDGED:
        robust: dict[str, Any] = {"robustness": True, "method": kind}
        found += [
            higher(f"{kind} keeps tasks in their lanes more than static", own_words, kind, "static", **robust),
            higher(f"{kind} is more often right than static", accuracy, kind, "static", **robust),
            higher(
                f"on the rows that AIM trains on, {kind} keeps lanes more than naive",
                own_words,
                kind,
                same_rows,
                method=kind,
                document="lanes",
            ),
            higher(
                f"on the rows that AIM trains on, {kind} is more often right than naive",
                accuracy,
                kind,
                same_rows,
                method=kind,
                document="confusion",
            ),
        ]
    return found
