"""`python -m experiments.studies.mixed_signals`: sentiment and spam. Does each task keep to its own words?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.studies.command import StudyConfig, study_command

if TYPE_CHECKING:
    from experiments.studies.report import Report

TASKS = ("sentiment", "spam")

SETTING = """\
Messages of two sentences from `experiments/studies/texts.tsv`: one has a tone (positive or negative), the other is spam
or not. As bags of words the two tasks have disjoint feature sets ({words} and {others} words). In the data spam sounds
positive four times out of five, so that the words of one task are a shortcut for the other; in the 512 validation
messages tone and kind are independent. Backbone {vocabulary}-16-4 with a linear head for each task. {train} messages to
train on and {guidance}, of the same sort, that AIM holds out for guidance; the other methods train on all {rows},
except `naive, AIM's rows`, which shows what holding out costs. `alone` is a backbone for each task. {steps} full-batch
updates by Adam at {learning_rate} for every method; AIM's thresholds learn at {policy_lr} (0.02 and 0.1 were alike on
seeds 100-107). *own words* is the share of a task's gradient saliency, mean |d logit / d word| over validation
messages, that falls on its own words: 0.5 is confusion, 1 is a task in its lane."""


@dataclass(frozen=True)
class MixedSignalsConfig(StudyConfig):
    """Train a classifier of sentiment and of spam on one backbone, and see which words each task goes by."""

    steps: int = 200
    """Updates of a training."""

    policy_lr: float = 2e-2
    """Learning rate of AIM's thresholds."""

    output_dir: Path = Path("results/analysis/studies/mixed_signals")
    """Where report.md, results.json and the figures go."""

    train: int = 170
    """Messages that every method trains on."""

    guidance: int = 30
    """Messages that AIM holds out, and the others train on, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "guidance"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 1 and 100000")


def study(config: MixedSignalsConfig) -> Report:
    """Train all methods over all seeds and report."""
    import numpy as np  # noqa: PLC0415 - torch and its like load only when there is something to train

    from experiments.studies import figures, fitting, problems, report  # noqa: PLC0415

    def train(method: str, seed: int) -> tuple[fitting.Fit, list[float], list[float]]:
        data = problems.messages(seed, train=config.train, guidance=config.guidance, steps=config.num_steps)
        phase = fitting.without_guidance(data.phase) if method == fitting.SAME_ROWS else data.phase
        rates = {"learning_rate": config.learning_rate, "policy_lr": config.policy_lr}
        # Alone: as many models as tasks, of each of which one task is trained and read.
        tasks = [[0], [1]] if method == fitting.ALONE else [[0, 1]]
        use, right, fits = np.zeros((2, data.num_words)), np.zeros(2), []
        for own in tasks:
            make = partial(problems.classifications, TASKS, own, data.num_words, [16], 4)
            model = fitting.seeded(make, seed)
            balancer = method if method in fitting.METHODS else "naive"
            part = fitting.of_tasks(phase, own)
            fits.append(fitting.fit_model(model, [part], balancer, **rates))
            use[own] = problems.word_use(model, part.validation.features)
            right[own] = problems.accuracies(model, part.validation)
        shares = [float(slope @ lane / slope.sum()) for slope, lane in zip(use, data.lanes, strict=True)]
        return fitting.side_by_side(fits), right.tolist(), shares

    methods = [*fitting.METHODS, fitting.SAME_ROWS, fitting.ALONE]
    results = fitting.collect("mixed signals", methods, config.seed_numbers, train, config.quiet)
    rows = {
        method: {seed: [*right, *shares] for seed, (_, right, shares) in by_seed.items()}
        for method, by_seed in results.items()
    }
    accuracy = {name: {seed: float(np.mean(row[:2])) for seed, row in of.items()} for name, of in rows.items()}
    own = {name: {seed: float(np.mean(row[2:])) for seed, row in of.items()} for name, of in rows.items()}
    fits = {method: {seed: fit for seed, (fit, _, _) in by_seed.items()} for method, by_seed in results.items()}

    def higher(
        text: str, score: dict[str, dict[int, float]], better: str, worse: str, robustness: bool = False
    ) -> report.Claim:
        return report.lower(text, score[worse], score[better], robustness=robustness)

    claims = [
        higher("static keeps tasks in their lanes more than naive", own, "static", "naive", True),
        higher("AIM keeps tasks in their lanes more than static", own, "AIM", "static", True),
        higher("static is more often right than naive", accuracy, "static", "naive", True),
        higher("AIM is more often right than static", accuracy, "AIM", "static", True),
        higher("on the rows that AIM trains on, AIM keeps lanes more than naive", own, "AIM", fitting.SAME_ROWS),
        higher(
            "on the rows that AIM trains on, AIM is more often right than naive", accuracy, "AIM", fitting.SAME_ROWS
        ),
        higher("sharing a backbone confuses: a backbone for each task keeps lanes more", own, fitting.ALONE, "naive"),
    ]
    taus = [fit.tau for fit in fits["AIM"].values() if fit.tau is not None]
    interventions = [fit.intervention for fit in fits["AIM"].values() if fit.intervention is not None]
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
        tables=[
            report.Table(
                "Accuracy and word use on validation messages",
                ("sentiment right", "spam right", "sentiment: own words", "spam: own words"),
                rows,
            )
        ],
        verdicts=report.judge(claims),
        figures={
            "learning_curves": figures.learning_curves(
                {"sentiment and spam": fits}, len(TASKS), "validation error (nats)"
            ),
            "tau": figures.heat_maps(
                {
                    "thresholds tau": np.mean(taus, 0),
                    "interventions w (0 keeps, 1 removes)": np.mean(interventions, 0),
                },
                TASKS,
                f"What AIM learned, mean over {len(taus)} seeds",
            ),
            "feature_use": figures.feature_use(
                {method: [row[2:] for row in by_seed.values()] for method, by_seed in rows.items()}, TASKS
            ),
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return study_command("mixed_signals", study, MixedSignalsConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
