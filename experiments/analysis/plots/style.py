"""What all Matplotlib figures share: their style, curves with intervals, heat maps, legends, titles, panels."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.analysis.arrays import Array
from experiments.analysis.looks import DIVERGING, Look, short, task_look
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
CHARACTERS_PER_INCH = 11.5  # of a title
LINE_HEIGHT = 0.15  # of a title, in inches


def style(look: Look) -> dict[str, Any]:
    """Colour and dashes as keyword arguments of Matplotlib."""
    return {"color": look.colour, "linestyle": look.dashes}


def task_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the lines of the task at place `index`, as keyword arguments of Matplotlib."""
    return style(task_look(index))


def draw_curve(axes: Axes, curve: Curve | None, label: str, band: bool = True, **style: Any) -> None:
    """Draw the mean as a line and, unless `band` is False, its interval as a band; without a curve, draw nothing."""
    if curve is None:
        return
    alone = "o" if len(curve.x) == 1 else ""  # a line of one point would not be seen
    axes.plot(curve.x, curve.mean, label=short(label), linewidth=1.5, marker=alone, **style)
    if band and curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.13, linewidth=0)


def draw_matrix(axes: Axes, matrix: Array, tasks: Sequence[str], limit: float) -> None:
    """Draw a heat map over pairs of tasks, with colours around 0; NaN stays empty.

    Args:
        axes: the panel to draw in.
        matrix: (T, T).
        tasks: (T,) names.
        limit: the number that has the strongest colour.
    """
    axes.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit)
    names = [short(task, 20) for task in tasks]
    axes.set_xticks(range(len(tasks)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(tasks)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(tasks) <= MOST_NUMBERS:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                shade = "white" if abs(value) > 0.6 * limit else "black"
                rounded = round(value, 2) + 0.0  # no -0.00
                axes.text(j, i, f"{rounded:.2f}", ha="center", va="center", color=shade, fontsize="small")


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


def grid_of_panels(figure: Figure, count: int, columns: int, **options: Any) -> list[Axes]:
    """Make `count` panels row by row; the rest of the last row stays empty."""
    columns = min(columns, count)
    panels = list(figure.subplots(-(-count // columns), columns, squeeze=False, **options).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return panels[:count]


def title(figure: Figure, text: str) -> None:
    """Write `text` above all panels. It is broken into lines that fit the figure, which grows for all but the first."""
    lines = textwrap.wrap(text.replace(" %", "\N{NO-BREAK SPACE}%"), int(CHARACTERS_PER_INCH * figure.get_figwidth()))
    figure.suptitle("\n".join(lines))
    figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * (len(lines) - 1))


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
