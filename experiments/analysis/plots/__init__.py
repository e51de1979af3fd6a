"""Figures of a comparison, each a function of its `Analysis`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.analysis.comparison import Analysis
from experiments.analysis.plots.comparison import (
    final_returns,
    parameter_efficiency,
    performance_profiles,
    sample_efficiency,
)
from experiments.analysis.plots.gradients import aim_thresholds, conflicts, rgb_angles, task_weights
from experiments.analysis.plots.learning import learning_curves, learning_curves_time
from experiments.analysis.plots.style import RC, save

__all__ = ["FIGURES", "SUFFIXES", "write"]

SUFFIXES = (".png", ".svg")

FIGURES: dict[str, Callable[[Analysis], Figure | None]] = {  # None where there is nothing to draw
    "learning_curves": learning_curves,
    "learning_curves_time": learning_curves_time,
    "final_returns": final_returns,
    "performance_profiles": performance_profiles,
    "sample_efficiency": sample_efficiency,
    "parameter_efficiency": parameter_efficiency,
    "task_weights": task_weights,
    "conflicts": conflicts,
    "aim_thresholds": aim_thresholds,
    "rgb_angles": rgb_angles,
}


def write(name: str, analysis: Analysis, folder: Path) -> list[Path]:
    """Draw the figure of that name as PNG and SVG into `folder`; without data, delete what an earlier analysis left.

    Returns:
        The files written.
    """
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    with mpl.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name may be in letters that the font lacks
        figure = FIGURES[name](analysis)
        if figure is None:
            for path in paths:
                path.unlink(missing_ok=True)
            return []
        save(figure, *paths)
    return paths
