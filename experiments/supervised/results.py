"""The scores of several balancers over the same seeds, and what they come to."""

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
    """Validation scores after the last epoch, of every balancer with every seed."""

    tasks: tuple[str, ...]
    baseline: str
    scores: dict[str, dict[int, list[float]]]  # by balancer and seed: of each task
    curves: dict[str, list[list[float]]]  # by balancer: of each seed, the mean score after each epoch

    @property
    def balancers(self) -> list[str]:
        """In the order in which they were asked for."""
        return list(self.scores)

    @property
    def seeds(self) -> list[int]:
        """In the order in which they were asked for."""
        return list(self.scores[self.baseline])

    @property
    def columns(self) -> list[str]:
        """Of a table: every task, the mean over tasks, and the worst task of each seed."""
        return [*self.tasks, MEAN, WORST]

    def matrix(self, balancer: str) -> Array:
        """The scores of one balancer (seeds, columns)."""
        scores = np.array([self.scores[balancer][seed] for seed in self.seeds])  # (seeds, tasks)
        return np.column_stack([scores, scores.mean(1), scores.min(1)])

    def estimates(self, balancer: str) -> list[Estimate]:
        """Means over seeds with intervals, one for each column."""
        summary = summarise(list(self.scores[balancer].values()))
        return [*summary.tasks, summary.overall, summary.worst]

    def differences(self) -> dict[str, dict[str, Comparison]]:
        """By column: every other balancer against the baseline, paired by seed."""
        found = {}
        for place, column in enumerate(self.columns):
            scores = {name: dict(zip(self.seeds, self.matrix(name)[:, [place]], strict=True)) for name in self.scores}
            baseline = scores.pop(self.baseline)
            found[column] = compare(scores, baseline)
        return found

    def as_json(self) -> dict[str, Any]:
        """For comparison.json."""
        differences = self.differences()
        return {
            "baseline": self.baseline,
            "seeds": self.seeds,
            "balancers": {
                name: {
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
