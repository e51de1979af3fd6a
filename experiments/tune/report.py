"""The table and the picture of a search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.table import Table

from experiments.analysis.plots.style import RC
from experiments.program.figures import save

if TYPE_CHECKING:
    from experiments.tune.tuning import Tried


COLUMNS = 3  # panels side by side
LOGARITHMIC = ("learning_rate", "lambd", "lr_inner", "weight_lr", "policy_lr", "magnitude_weight", "progress_weight")


def trials_table(name: str, tried: Sequence[Tried]) -> Table:
    """All trials, the best first; the first trial had the defaults."""
    table = Table("trial", "score", title=f"{name}: {len(tried)} trials")
    for setting in tried[0].settings:
        table.add_column(setting, justify="right")
    for number, trial in sorted(enumerate(tried), key=lambda pair: -(pair[1].score or float("-inf"))):
        score = "failed" if trial.score is None else f"{trial.score:.1f}"
        label = f"{number + 1} (default)" if number == 0 else str(number + 1)
        table.add_row(label, score, *(str(value) for value in trial.settings.values()))
    return table


def draw_trials(name: str, tried: Sequence[Tried], path: Path) -> None:
    """Draw the score of every trial: in their order, and against each setting that is a number."""
    done = [(number, trial) for number, trial in enumerate(tried) if trial.score is not None]
    numeric = [key for key, value in tried[0].settings.items() if isinstance(value, int | float)]
    with mpl.rc_context(RC):
        rows = math.ceil((1 + len(numeric)) / COLUMNS)
        figure = Figure(figsize=(3 * min(COLUMNS, 1 + len(numeric)), 2.7 * rows), layout="constrained")
        grid = figure.subplots(rows, min(COLUMNS, 1 + len(numeric)), sharey=True, squeeze=False).ravel()
        axes, unused = grid[: 1 + len(numeric)], grid[1 + len(numeric) :]
        for axis in unused:
            axis.set_axis_off()
        numbers, scores = [number + 1 for number, _ in done], [trial.score or 0.0 for _, trial in done]
        axes[0].step(numbers, list(itertools.accumulate(scores, max)), where="post", color="black", label="best so far")
        abscissae: list[list[float]] = [
            [*map(float, numbers)],
            *([float(trial.settings[key]) for _, trial in done] for key in numeric),
        ]
        for axis, values, label in zip(axes, abscissae, ("trial", *numeric), strict=True):
            for (_, trial), x in zip(done, values, strict=True):
                axis.plot([x] * len(trial.scores), list(trial.scores.values()), ".", color="#999999", markersize=4)
            axis.plot(values, scores, "o", color="#4477AA", label="mean over seeds")
            axis.plot(values[:1], scores[:1], "D", color="#EE6677", label="defaults") if done[0][0] == 0 else None
            axis.set_xlabel(label)
            if label in LOGARITHMIC and min(values) > 0:
                axis.set_xscale("log")
                axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
                axis.xaxis.set_major_formatter("{x:g}")
                axis.xaxis.set_minor_formatter(NullFormatter())
        figure.supylabel("mean return of the trial", fontsize="medium")
        axes[0].legend(loc="lower right")
        figure.suptitle(f"{name}: {len(tried)} trials; grey points are seeds")
        save(figure, path)
