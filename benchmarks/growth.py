"""Exponents of growth, fitted to measurements over numbers of tasks and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Exponents:
    """The exponents of `value ~ T^tasks * D^parameters`. An exponent is None if only one T, or one D, was measured."""

    tasks: float | None
    parameters: float | None


def fit_exponents(tasks: Sequence[float], parameters: Sequence[float], values: Sequence[float]) -> Exponents:
    """Fit the exponents by least squares over the logarithms.

    Args:
        tasks: the number of tasks T of each measurement.
        parameters: the number of parameters D of each measurement.
        values: the measured values. All numbers are positive.
    """
    known = {"tasks": np.log(tasks), "parameters": np.log(parameters)}
    varying = {name: column for name, column in known.items() if len(set(column.tolist())) > 1}
    fitted: dict[str, float] = {}
    if len(values) > len(varying):
        matrix = np.column_stack([np.ones(len(values)), *varying.values()])
        solution, _, rank, _ = np.linalg.lstsq(matrix, np.log(values), rcond=None)
        if rank == matrix.shape[1]:  # otherwise T and D changed only together, and their exponents cannot be told apart
            fitted = dict(zip(varying, solution[1:].tolist(), strict=True))
    return Exponents(fitted.get("tasks"), fitted.get("parameters"))
