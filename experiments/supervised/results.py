"""The scores of several balancers over the same seeds, and their statistics."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiments.analysis.arrays import Array
from experiments.analysis.intervals import Estimate, summarise
from experiments.analysis.significance import Comparison, compare
from experiments.supervised.settings import MEAN, WORST


@dataclass(frozen=True)
class Results:
    """The validation scores of every balancer with every seed.

    Attributes:
        tasks: the names of the tasks.
        baseline: the balancer that the others are compared with.
        scores: for each balancer and seed, the score of each task after the last epoch.
        curves: for each balancer and each of its seeds, the mean score over tasks after each epoch.
        words: for each balancer, the word of the command line that says how it is made.
    """

    tasks: tuple[str, ...]
    baseline: str
    scores: dict[str, dict[int, list[float]]]
    curves: dict[str, list[list[float]]]
    words: dict[str, str]

    @property
    def balancers(self) -> list[str]:
        """The labels of the balancers in the order of the command line."""
        return list(self.scores)

    @property
    def seeds(self) -> list[int]:
        """The seeds in the order of the command line."""
        return list(self.scores[self.baseline])

    @property
    def columns(self) -> list[str]:
        """The columns of a table: every task, the mean over tasks, and the worst task of each seed."""
        return [*self.tasks, MEAN, WORST]

    def matrix(self, balancer: str) -> Array:
        """The scores of one balancer (seeds, columns)."""
        scores = np.array([self.scores[balancer][seed] for seed in self.seeds])  # (seeds, tasks)
        return np.column_stack([scores, scores.mean(1), scores.min(1)])

    def estimates(self, balancer: str) -> list[Estimate]:
        """Means over seeds with their intervals, one for each column."""
        summary = summarise(list(self.scores[balancer].values()))
        return [*summary.tasks, summary.overall, summary.worst]

    def differences(self) -> dict[str, dict[str, Comparison]]:
        """For each column, the comparison of every other balancer with the baseline, paired by seed."""
        found = {}
        for place, column in enumerate(self.columns):
            scores = {name: dict(zip(self.seeds, self.matrix(name)[:, [place]], strict=True)) for name in self.scores}
            baseline = scores.pop(self.baseline)
            found[column] = compare(scores, baseline)
        return found

    def as_json(self) -> dict[str, Any]:
        """The contents of comparison.json."""
        differences = self.differences()
        return {
            "baseline": self.baseline,
            "seeds": self.seeds,
            "balancers": {
                name: {
                    "word": self.words[name],
                    "scores": {str(seed): dict(zip(self.tasks, row, strict=True)) for seed, row in scores.items()},
                    "summary": dict(zip(self.columns, map(asdict, self.estimates(name)), strict=True)),
                    "difference": {
                        column: asdict(compared[name]) for column, compared in differences.items() if name in compared
                    },
                    "curves": self.curves[name],
                }
                for name, scores in self.scores.items()
            },
        }
