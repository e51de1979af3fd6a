"""The study of mixed signals: sentiment and spam on one backbone, each with words of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from experiments.studies import figures, fitting, many_seeds, policy_figures, problems, report
from experiments.studies.mixed_signals import MixedSignalsConfig

TASKS = ("sentiment", "spam")
NARROW, WIDE = 1, 2  # features that the backbone hands to both heads

SETTING = """\
Messages of two sentences from `experiments/studies/texts.tsv`: one has a tone (positive or negative), the other is spam
or not. As bags of words the two tasks have disjoint feature sets ({words} and {others} words). In the data spam sounds
positive four times out of five, so that the words of one task are a shortcut for the other; in the 512 validation
messages tone and kind are independent. A linear head for each task, and two backbones: {vocabulary}-16-1 hands both
tasks **one feature**, so that sharing costs something and there is something to balance; but both heads then read the
same feature, and *own words* is 0.5 on average whatever is done. {vocabulary}-16-2 has a feature for each task, so that
each could keep to its own; whether sharing costs anything there is the second claim. {train} messages to train
on and {guidance}, of the same sort, that AIM holds out for guidance; the other methods train on all {rows}, except
`naive, AIM's rows`, which shows what holding out costs. `alone` is a backbone for each task. {steps} full-batch updates
by Adam at {learning_rate} for every method; AIM's thresholds learn at {policy_lr} (0.02 and 0.1 were alike on seeds
100-107). *own words* is the share of a task's gradient saliency, mean |d logit / d word| over validation messages, that
falls on its own words: 0.5 is confusion, 1 is a task in its lane."""

Scores = dict[str, dict[int, float]]  # by method and seed


Results = dict[str, dict[int, tuple[fitting.Fit, list[float], list[float]]]]  # see `train`


def study(config: MixedSignalsConfig) -> report.Report:
    """Train all methods over all seeds through both backbones and report."""
    results = {width: collect(config, width) for width in (NARROW, WIDE)}
    fits = {
        width: {method: {seed: fit for seed, (fit, _, _) in of.items()} for method, of in found.items()}
        for width, found in results.items()
    }
    accuracy = {width: averages(found, 0) for width, found in results.items()}
    learned = policy_figures.learned(fits[NARROW])
    example = problems.messages(config.seed_numbers[0], train=1, guidance=1, steps=1)
    words, others = (int(lane.sum()) for lane in example.lanes)
    return report.Report(
        title="Mixed signals: sentiment and spam on one backbone",
        setting=SETTING.format(
            rows=config.train + config.guidance,
            vocabulary=example.num_words,
            words=words,
            others=others,
            **config.settings,
        ),
        settings=config.settings,
        tables=[table(f"Accuracy and word use on validation messages, {IN_WORDS[w]}", results[w]) for w in results],
        verdicts=report.judge(claims(averages(results[WIDE], 1), accuracy[NARROW], accuracy[WIDE])),
        figures={
            "learning_curves": figures.learning_curves(
                {IN_WORDS[width]: of for width, of in fits.items()}, len(TASKS), "validation error (nats)"
            ),
            "tau": policy_figures.thresholds(learned, TASKS, "Mixed signals through one feature"),
            "tau_curves": policy_figures.threshold_curves(learned, TASKS, "Mixed signals through one feature"),
            "feature_use": figures.feature_use(
                {method: [shares for _, _, shares in of.values()] for method, of in results[WIDE].items()}, TASKS
            ),
        },
    )


IN_WORDS = {NARROW: "one feature", WIDE: "two features"}


def collect(config: MixedSignalsConfig, width: int) -> Results:
    """Train every method with every seed through the backbone of this width."""
    methods = [*fitting.METHODS, fitting.SAME_ROWS, fitting.ALONE]
    train_one = partial(train, config, width)
    return many_seeds.collect(
        f"mixed signals, {IN_WORDS[width]}", methods, config.seed_numbers, train_one, config.quiet
    )


def averages(results: Results, part: int) -> Scores:
    """The mean over tasks of accuracy (part 0) or word use (part 1), by method and seed."""
    return {m: {seed: float(np.mean(found[1:][part])) for seed, found in of.items()} for m, of in results.items()}


def table(title: str, results: Results) -> report.Table:
    """Accuracies and word use of every method."""
    rows = {
        method: {seed: [*right, *shares] for seed, (_, right, shares) in of.items()} for method, of in results.items()
    }
    return report.Table(title, ("sentiment right", "spam right", "sentiment: own words", "spam: own words"), rows)


def train(
    config: MixedSignalsConfig, width: int, method: str, seed: int
) -> tuple[fitting.Fit, list[float], list[float]]:
    """Train through a backbone of this width with one method and one seed.

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
        make = partial(problems.classifications, TASKS, tasks, data.num_words, [16], width)
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


def claims(own_words: Scores, accuracy: Scores, of_two: Scores) -> list[report.Claim]:
    """The claims of this study, from three scores of which higher is better.

    Args:
        own_words: word use through two features.
        accuracy: accuracy through one feature.
        of_two: accuracy through two features.
    """

    def higher(text: str, score: Scores, better: str, worse: str, **of_claim: Any) -> report.Claim:
        return report.lower(text, score[worse], score[better], **of_claim)

    same_rows, apart = fitting.SAME_ROWS, (fitting.ALONE, "naive")
    found = [
        higher("one feature, something to balance: a backbone for each task is more often right", accuracy, *apart),
        higher("two features, something to balance: a backbone for each task is more often right", of_two, *apart),
        higher("two features: a backbone for each task keeps lanes more than naive", own_words, *apart),
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
