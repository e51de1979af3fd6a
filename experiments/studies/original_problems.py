"""The data and the model of the experiments in AIM's document, with its sizes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.studies.fitting import Phase, split
from experiments.studies.problems import VALIDATION
from experiments.supervised.data import Samples

Array = NDArray[np.float64]

TRAIN, GUIDANCE = 160, 40  # of 200 rows
FEATURES = 20
WIDTH = 64
REAL = ("task 1", "task 2", "task 3")
INFORMATIVE = 10  # features that the real tasks depend on


class Model(nn.Module):
    """Two layers of 64 rectified units that all tasks share, and a linear head with one output for each task.

    Args:
        num_tasks: T.

    Shapes: (B, 20) to T tensors (B,).
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(num_tasks))

    def forward(self, features: Tensor) -> list[Tensor]:
        """The answer of each task."""
        shared = self.encoder(features)
        return [head(shared).squeeze(1) for head in self.heads]


def sabotage(seed: int, steps: int) -> Phase:
    """Three linear regressions on 10 of 20 features and, as the last task, pure noise.

    Coefficients are uniform in [0, 100], the noise on the targets of the real tasks has deviation 0.1, and targets are
    standardised by the training rows.
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(TRAIN + GUIDANCE + VALIDATION, FEATURES))
    coefficients = np.zeros((FEATURES, len(REAL)))
    coefficients[rng.permutation(FEATURES)[:INFORMATIVE]] = 100 * rng.random((INFORMATIVE, len(REAL)))
    real = features @ coefficients + 0.1 * rng.normal(size=(len(features), len(REAL)))
    return _standardised(features, np.column_stack([real, rng.normal(size=len(features))]), steps)


def mixed_signals(seed: int, steps: int) -> tuple[Phase, tuple[Array, Array]]:
    """Two linear regressions on 20 "words": the first 10 tell of sentiment and the others of spam.

    Returns:
        The data, and for each task 1 for its own words and 0 for others, (20,).
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(TRAIN + GUIDANCE + VALIDATION, FEATURES))
    half = FEATURES // 2
    own = np.repeat(np.eye(2), half, axis=1)  # (2, 20)
    targets = features @ (own * rng.normal(size=(2, FEATURES))).T + 0.1 * rng.normal(size=(len(features), 2))
    return _standardised(features, targets, steps), (own[0], own[1])


def _standardised(features: Array, targets: Array, steps: int) -> Phase:
    scaled = (targets - targets[:TRAIN].mean(0)) / targets[:TRAIN].std(0)
    samples = Samples(torch.from_numpy(features), [torch.from_numpy(column.copy()) for column in scaled.T])
    return split(samples, TRAIN, GUIDANCE, steps)
