"""What may be tried of a setting, when settings are searched for; each method's configuration declares it.

A space asks an Optuna trial, or anything that has its `suggest_float` and `suggest_categorical`, for a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Trial(Protocol):
    """The part of `optuna.Trial` that a space asks."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number between `low` and `high`."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


@dataclass(frozen=True)
class Between:
    """A number between two others; on a logarithmic scale where `log` is true."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Trial, name: str) -> float:
        """The value that the trial chooses, to four digits."""
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.4g}")

    def point(self, name: str, value: float) -> dict[str, Any]:
        """What a trial is told in order to choose `value`."""
        return {name: value}


@dataclass(frozen=True)
class Among:
    """One of a few values."""

    choices: tuple[Any, ...]

    def suggest(self, trial: Trial, name: str) -> Any:
        """The value that the trial chooses."""
        return trial.suggest_categorical(name, self.choices)

    def point(self, name: str, value: Any) -> dict[str, Any]:
        """What a trial is told in order to choose `value`."""
        return {name: value}


@dataclass(frozen=True)
class Weights:
    """A weight for each task; they sum to the number of tasks, and one is at most `ratio` times another."""

    tasks: int
    ratio: float = 16.0

    def suggest(self, trial: Trial, name: str) -> list[float]:
        """The weights that the trial chooses, to four digits."""
        end = self.ratio**0.5
        raw = [trial.suggest_float(f"{name}[{task}]", 1 / end, end, log=True) for task in range(self.tasks)]
        return [float(f"{self.tasks * weight / sum(raw):.4g}") for weight in raw]

    def point(self, name: str, value: Sequence[float] | None) -> dict[str, Any]:
        """What a trial is told in order to choose `value`; None are equal weights."""
        return {f"{name}[{task}]": 1.0 if value is None else value[task] for task in range(self.tasks)}


Space = Between | Among | Weights

SHARED: Mapping[str, Space] = {"learning_rate": Between(1e-4, 2e-3, log=True), "batch_size": Among((32, 64, 128))}
"""What is searched for every method: the settings that decide the most whatever the balancer."""
