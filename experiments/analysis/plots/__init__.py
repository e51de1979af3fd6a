"""The figures of a comparison as PNG and SVG."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib as mpl

from experiments.analysis.comparison import Analysis
from experiments.analysis.figures import FIGURES
from experiments.analysis.plots.draw import draw
from experiments.analysis.plots.style import RC
from experiments.program.figures import save

__all__ = ["SUFFIXES", "file_names", "write"]

SUFFIXES = (".png", ".svg")


def file_names(name: str) -> list[str]:
    """The names of the files of a figure."""
    return [f"{name}{suffix}" for suffix in SUFFIXES]


def write(name: str, analysis: Analysis, folder: Path) -> list[Path]:
    """Draw a figure as PNG and SVG into `folder`. Without data, delete the files that an earlier analysis left.

    Args:
        name: the name of the figure in `FIGURES`.
        analysis: what the figure shows.
        folder: the folder of the files.

    Returns:
        The files that were written.
    """
    paths = [folder / file for file in file_names(name)]
    data = FIGURES[name](analysis)
    if data is None:
        for path in paths:
            path.unlink(missing_ok=True)
        return []
    with mpl.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name may be in letters that the font lacks
        save(draw(data), *paths)
    return paths
