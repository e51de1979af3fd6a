"""What all Matplotlib figures share: their style, curves with intervals, heat maps, legends, titles, panels."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from experiments.analysis.arrays import Array
from experiments.analysis.looks import DIVERGING, Look, cosine, few_seeds, short, task_look
from experiments.analysis.replicates import Curve

MOST_NUMBERS = 8  # largest number of tasks for which the cells of a heat map hold their numbers

RC: Any = {  # newer releases of Matplotlib type every key
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "figure.titlesize": "medium",
    "legend.fontsize": "small",
    "legend.frameon": False,
    "font.size": 9,
    "text.parse_math": False,  # a name may contain a dollar sign
    "figure.dpi": 130,  # the resolution of the saved files is also that of the layout
    "svg.hashsalt": "mtrl",  # the same figure gives the same file
}
CHARACTERS_PER_INCH = 17  # of a caption
LINE_HEIGHT = 0.14  # of a caption, in inches
NOTE = "note"  # the name of the caption among the parts of a figure


def style(look: Look) -> dict[str, Any]:
    """Colour and dashes as keyword arguments of Matplotlib."""
    return {"color": look.colour, "linestyle": look.dashes}


def task_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the lines of the task at place `index`, as keyword arguments of Matplotlib."""
    return style(task_look(index))


def draw_curve(axes: Axes, curve: Curve | None, label: str, band: bool = True, **style: Any) -> None:
    """Draw the mean as a line, and how seeds differ: few of them as thin lines, more, if `band` is True, as a band.

    Without a curve, nothing is drawn.
    """
    if curve is None:
        return
    seeds = few_seeds(curve)
    if seeds is not None:
        axes.plot(curve.x, seeds.T, linewidth=0.5, alpha=0.35, **style)
    alone = "o" if len(curve.x) == 1 else ""  # a line of one point would not be seen
    axes.plot(curve.x, curve.mean, label=short(label), linewidth=1.5, marker=alone, **style)
    if band and seeds is None and curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.13, linewidth=0)


def draw_matrix(axes: Axes, matrix: Array, tasks: Sequence[str]) -> None:
    """Draw a heat map of cosines over pairs of tasks, with colours from -1 to 1; NaN stays empty.

    A threshold below -1, which no cosine is below, is written as `never`.

    Args:
        axes: the panel to draw in.
        matrix: (T, T).
        tasks: (T,) names.
    """
    axes.imshow(matrix, cmap=DIVERGING, vmin=-1, vmax=1)
    names = [short(task, 20) for task in tasks]
    axes.set_xticks(range(len(tasks)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(tasks)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(tasks) <= MOST_NUMBERS:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                shade = "white" if abs(value) > 0.6 else "black"
                axes.text(j, i, cosine(value), ha="center", va="center", color=shade, fontsize="small")


def legend_beside(axes: Axes, handles: Iterable[Artist] | None = None) -> None:
    """Put a legend to the right of the panel, where it covers nothing.

    Args:
        axes: the panel.
        handles: what the legend shows. Default: the lines of the panel.
    """
    axes.legend(
        handles=handles_of([axes]) if handles is None else list(handles), loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )


def handles_of(panels: Iterable[Axes]) -> list[Artist]:
    """Handles of a legend for all these panels, each label once."""
    by_label: dict[str, Artist] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            by_label.setdefault(text, handle)
    return list(by_label.values())


def variant_markers() -> list[Line2D]:
    """Handles of a legend for the markers of the aware variant and of the blind variant."""
    return [
        Line2D([], [], color="black", marker="o", linestyle="", label=variant, **marker(variant == "blind", "black"))
        for variant in ("aware", "blind")
    ]


def marker(blind: bool, colour: str) -> dict[str, Any]:
    """Keyword arguments for a marker that is filled in the aware variant and open in the blind variant."""
    return {"markerfacecolor": "white" if blind else colour, "markeredgecolor": colour, "markersize": 5.5}


def grid_of_panels(figure: Figure | SubFigure, count: int, columns: int, **options: Any) -> list[Axes]:
    """Make `count` panels row by row; the rest of the last row stays empty."""
    columns = min(columns, count)
    panels = list(figure.subplots(-(-count // columns), columns, squeeze=False, **options).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return panels[:count]


def title(figure: Figure, text: str, note: str = "") -> None:
    """Write the title above all panels, and the note below them, in lines that fit the figure, which grows for them."""
    figure.suptitle(text, weight="bold")
    lines = textwrap.wrap(note.replace(" %", "\N{NO-BREAK SPACE}%"), int(CHARACTERS_PER_INCH * figure.get_figwidth()))
    if not lines:
        return
    room = LINE_HEIGHT * len(lines) + 0.08
    height = figure.get_figheight() + room
    figure.set_figheight(height)
    figure.text(0.01, 0.06 / height, "\n".join(lines), va="bottom", color="0.35", fontsize="small", gid=NOTE)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, room / height, 1, 1 - room / height))


def only_outer(panels: Sequence[Axes], columns: int, x: str | None = None, y: str | None = None) -> None:
    """Label the vertical axis in the left column only, and the horizontal axis in the lowest panel of each column."""
    for index, axes in enumerate(panels):
        if y is not None and index % columns == 0:
            axes.set_ylabel(y)
        if index + columns >= len(panels):
            axes.tick_params(labelbottom=True)
            if x is not None:
                axes.set_xlabel(x)
        else:
            axes.set_xlabel("")
