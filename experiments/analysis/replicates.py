"""The runs of one method with several seeds: their scores, their curves during training, and their speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from experiments.analysis.intervals import means
from experiments.analysis.runs import BLIND, SECONDS, Run, weight_key
from experiments.program.run_files import STEP

Array = NDArray[np.float64]

POINTS = 200
"""Number of points of a mean curve if its runs were logged at different steps."""

BINS = 30
"""Number of stretches of training. Values from single updates are noisy and are averaged over each stretch."""


@dataclass(frozen=True)
class Curve:
    """A quantity during training: its mean over seeds, with pointwise 95 % intervals (Student's)."""

    x: Array  # (P,) environment steps over all tasks
    mean: Array  # (P,)
    low: Array | None  # (P,); None from one seed
    high: Array | None  # (P,); None from one seed
    seeds: Array | None = None  # (seeds, P): the quantity of each seed; None if it is no mean over seeds


@dataclass(frozen=True)
class WeightProfile:
    """What a method does with the weights of tasks, by seed."""

    relative: Array  # (seeds, tasks): mean weight over training, relative to the mean of all tasks
    deviation: Array  # (seeds, tasks): standard deviation over training, relative to the mean of all tasks
    size: Array  # (seeds, 1): mean weight over training and tasks


@dataclass(frozen=True, eq=False)  # compared by identity, because the contents are large
class Method:
    """The finished runs of one method and variant, a run per seed, all on the same tasks."""

    name: str  # with "_blind" for the blind variant
    runs: tuple[Run, ...]  # in the order of seeds
    tasks: tuple[str, ...]

    @property
    def blind(self) -> bool:
        """Whether this is the blind variant, whose observations do not contain the task."""
        return self.name.endswith(BLIND)

    @cached_property
    def last_step(self) -> float:
        """The environment steps of the longest run, or 0 if they are unknown."""
        return max(float(run.columns[STEP][1][-1]) if STEP in run.columns else 0.0 for run in self.runs)

    @property
    def variant(self) -> str:
        """`aware` or `blind`."""
        return "blind" if self.blind else "aware"

    @property
    def family(self) -> str:
        """The name without the variant."""
        return self.name.removesuffix(BLIND)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs, in order."""
        return tuple(run.seed for run in self.runs)

    @cached_property
    def scores(self) -> Array:
        """(seeds, tasks): mean return of the greedy episodes of each seed after training."""
        return self._of_evaluation("mean", self.tasks)

    @cached_property
    def rated(self) -> tuple[str, ...]:
        """The tasks of which all runs know what a success is."""
        results = [run.evaluation["tasks"] for run in self.runs]
        return tuple(task for task in self.tasks if all(of[task]["success_rate"] is not None for of in results))

    @cached_property
    def success(self) -> Array:
        """(seeds, rated tasks): share of the greedy episodes after training that were a success."""
        return self._of_evaluation("success_rate", self.rated)

    def _of_evaluation(self, key: str, tasks: Sequence[str]) -> Array:
        rows = [[run.evaluation["tasks"][task][key] for task in tasks] for run in self.runs]
        return np.array(rows, float).reshape(len(self.runs), len(tasks))

    def rows(self) -> dict[int, Array]:
        """The (tasks,) scores of each seed."""
        return dict(zip(self.seeds, self.scores, strict=True))

    @cached_property
    def successes(self) -> tuple[int, int] | None:
        """How many of the greedy episodes after training in rated tasks were a success, and how many there are.

        None if a run, of an early version, does not hold the returns of its episodes.
        """
        results = [run.evaluation["tasks"][task] for run in self.runs for task in self.rated]
        if not all("returns" in result for result in results):
            return None
        episodes = [len(result["returns"]) for result in results]
        wins = sum(round(result["success_rate"] * count) for result, count in zip(results, episodes, strict=True))
        return wins, sum(episodes)

    def learning_curve(self, task: str) -> Curve | None:
        """Greedy return on a task during training, or None if no run has a curve."""
        key = f"eval/{task}/return"
        return over_seeds([run.curve(key) for run in self.runs if key in run.columns])

    def mean_return_curves(self) -> list[tuple[Array, Array]]:
        """For each seed with curves: environment steps, and the greedy return at these steps, averaged over tasks."""
        return [(x, returns.mean(0)) for x, returns in self._return_curves(self.tasks)]

    def margin_curves(self, solved: Mapping[str, float | None]) -> list[tuple[Array, Array]]:
        """For each seed with curves: environment steps, and by how much all tasks are solved at these steps, at least.

        Args:
            solved: for each task, the return that counts as solved; a task without one does not count.
        """
        known = {task: value for task in self.tasks if (value := solved.get(task)) is not None}
        thresholds = np.array([*known.values()])[:, None]
        return [(x, (returns - thresholds).min(0)) for x, returns in self._return_curves(tuple(known)) if known]

    def _return_curves(self, tasks: Sequence[str]) -> list[tuple[Array, Array]]:
        """For each seed with curves: environment steps (P,), and the greedy returns at these steps, (tasks, P)."""
        per_seed = []
        for run in self.runs:
            curves = [run.curve(f"eval/{task}/return") for task in tasks]
            if curves and all(len(x) and np.array_equal(x, curves[0][0]) for x, _ in curves):
                per_seed.append((curves[0][0], np.array([y for _, y in curves])))
        return per_seed

    def weight_curve(self, task: str) -> Curve | None:
        """The coefficient of the task's gradient, averaged over `BINS` stretches of training."""
        return over_seeds([in_bins(run.curve(weight_key(task))) for run in self.runs])

    def angle_curve(self, task: str) -> Curve | None:
        """RGB's rotation of the task's gradient in radians, averaged over `BINS` stretches of training."""
        return over_seeds([in_bins(run.curve(f"balancer/{task}/angle")) for run in self.runs])

    def weight_profile(self) -> WeightProfile | None:
        """The weights of tasks during training in three numbers per run; None if a run has no weights of a task."""
        curves = [[in_bins(run.curve(weight_key(task)))[1] for task in self.tasks] for run in self.runs]
        if not all(len(curve) and len(curve) == len(of_run[0]) for of_run in curves for curve in of_run):
            return None
        weights = [np.array(of_run) for of_run in curves]  # (tasks, bins) of each run
        sizes = [run.mean() for run in weights]
        if not all(size > 0 for size in sizes):
            return None
        return WeightProfile(
            relative=np.array([run.mean(1) / size for run, size in zip(weights, sizes, strict=True)]),
            deviation=np.array([run.std(1) / size for run, size in zip(weights, sizes, strict=True)]),
            size=np.array(sizes)[:, None],
        )

    @cached_property
    def learns_weights(self) -> bool:
        """Whether the weight of any task changes during training."""
        curves = (run.curve(weight_key(task))[1] for run in self.runs for task in self.tasks)
        return any(len(values) and np.ptp(values) > 1e-6 for values in curves)

    def mean_cosines(self) -> Array | None:
        """(tasks, tasks): cosine between the gradients of two tasks, averaged over training and then over seeds."""

        def average(values: Array) -> float:
            return float(values.mean())

        cosines = self._pairs("cosine", average)
        if cosines is None:
            return None
        cosines = np.fmax(cosines, cosines.T)  # each pair is logged in one order only
        np.fill_diagonal(cosines, 1.0)
        return cosines

    def thresholds(self) -> Array | None:
        """(tasks, tasks): AIM's tau at the end of training, averaged over seeds.

        Where the cosine of two gradients is below tau[i, j], the gradient of task i gives way to that of task j. The
        diagonal holds the thresholds of the gates, and NaN without gates.
        """
        tau = self._pairs("tau", lambda values: float(values[-1]))
        if tau is not None:
            for i, task in enumerate(self.tasks):
                gates = [y[-1] for run in self.runs if len(y := run.curve(f"balancer/{task}/gate_tau")[1])]
                tau[i, i] = np.mean(gates) if gates else np.nan
        return tau

    def _pairs(self, name: str, reduce: Callable[[Array], float]) -> Array | None:
        """(tasks, tasks) means over seeds of a diagnostic of pairs of tasks; NaN for a pair without values."""
        matrix = np.full((len(self.tasks), len(self.tasks)), np.nan)
        for i, a in enumerate(self.tasks):
            for j, b in enumerate(self.tasks):
                # If AIM has one threshold for all pairs, it is logged without the names of tasks.
                keys = (f"balancer/{name}/{a}_{b}", f"balancer/{name}")
                curves = (next((y for key in keys if len(y := run.curve(key)[1])), None) for run in self.runs)
                values = [reduce(curve) for curve in curves if curve is not None]
                if i != j and values:
                    matrix[i, j] = np.mean(values)
        return None if np.isnan(matrix).all() else matrix

    def steps_per_s(self) -> float | None:
        """Environment steps per second of training, including evaluations for the learning curves; mean over seeds."""
        return _mean(run.columns[key][1][-1] for run in self.runs if (key := "time/steps_per_s") in run.columns)

    def ms_per_update(self) -> float | None:
        """Milliseconds of training per update, including environment steps and evaluations; mean over seeds."""
        times = []
        for run in self.runs:
            seconds, updates = (run.columns.get(key) for key in (SECONDS, "train/updates"))
            if seconds is not None and updates is not None and updates[1][-1] > 0:
                times.append(1000 * seconds[1][-1] / updates[1][-1])
        return _mean(times)

    def minutes(self) -> float | None:
        """Minutes of training; mean over seeds."""
        return _mean(run.columns[SECONDS][1][-1] / 60 for run in self.runs if SECONDS in run.columns)


def as_methods(runs: Mapping[str, Sequence[Run]]) -> dict[str, Method]:
    """Methods by name, from the runs that `load_runs` returns. Tasks have the same order in all of them."""
    order = list(dict.fromkeys(task for of_name in runs.values() for run in of_name for task in run.tasks))
    return {
        name: Method(name, tuple(of_name), tuple(task for task in order if task in of_name[0].tasks))
        for name, of_name in runs.items()
    }


def over_seeds(curves: Sequence[tuple[Array, Array]]) -> Curve | None:
    """The mean of several curves, over the range that all of them cover; None if there is no such range.

    If all curves have the same abscissae, these are kept. Otherwise the curves are interpolated linearly.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    grid = curves[0][0]
    if not all(np.array_equal(x, grid) for x, _ in curves):
        start, stop = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
        if start > stop:
            return None
        grid = np.linspace(start, stop, POINTS) if start < stop else np.array([start])
    each = np.array([np.interp(grid, x, y) for x, y in curves])
    mean, half = means(each)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Curve(grid, mean, low, high, each)


def in_bins(curve: tuple[Array, Array], bins: int = BINS) -> tuple[Array, Array]:
    """Averages of a curve over stretches of equal length, at the mean abscissae. Empty stretches are left out."""
    x, y = curve
    if not len(x):
        return x, y
    index = np.minimum((bins * x / max(x[-1], 1)).astype(int), bins - 1)
    counts = np.bincount(index)
    filled = counts > 0
    return tuple(np.bincount(index, values)[filled] / counts[filled] for values in (x, y))  # type: ignore[return-value]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None
