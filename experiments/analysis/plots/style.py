"""What all figures share: a method's colour, labels that tell the number of seeds, legends, saving."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from experiments.analysis.comparison import Analysis
from experiments.analysis.replicates import Curve, Method
from mtrl.files import replacing

# Paul Tol's muted palette, told apart by all kinds of colour vision, with black for the baseline and grey for agents
# that share nothing. A method keeps its colour in every figure, and its variants share it.
COLOURS = {
    "shared_dqn": "#000000",
    "gradnorm": "#CC6677",
    "pcgrad": "#117733",
    "gradnorm_pcgrad": "#999933",
    "rgb": "#882255",
    "aim": "#DDAA33",
    "brc": "#33A0D8",
    "independent_dqn": "#888888",
    "torchjd_upgrad": "#AA4499",
}
OTHER_COLOURS = ("#332288", "#44AA99", "#661100", "#6699CC")
OTHER_DASHES = ("-", "--", "-.", ":")
TASK_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito
DIVERGING = "PuOr"  # as good for all kinds of colour vision
MOST_NUMBERS = 8  # tasks up to which a heat map's cells hold their numbers
SOLVED = 200  # the return from which LunarLander counts as solved

RC: Any = {  # newer releases of Matplotlib type every key
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "figure.titlesize": "medium",
    "legend.fontsize": "small",
    "legend.frameon": False,
    "font.size": 9,
    "text.parse_math": False,  # a name may have a dollar
    "figure.dpi": 130,  # laid out at the resolution that is saved
    "svg.hashsalt": "mtrl",  # the same figure is the same file
}
CHARACTERS_PER_INCH = 11.5  # of a title
STEPS_LABEL = "environment steps (all tasks)"


def line_style(method: Method) -> dict[str, Any]:
    """Colour and dashes of the method's lines, by its name alone."""
    known = COLOURS.get(method.family)
    if known is not None:
        return {"color": known, "linestyle": "-"}
    number = crc32(method.family.encode())
    colour, dashes = OTHER_COLOURS[number % len(OTHER_COLOURS)], OTHER_DASHES[number // 7 % len(OTHER_DASHES)]
    return {"color": colour, "linestyle": dashes}


def colour(method: Method) -> str:
    """The method's colour."""
    found: str = line_style(method)["color"]
    return found


def task_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the lines of a task."""
    return {
        "color": TASK_COLOURS[index % len(TASK_COLOURS)],
        "linestyle": OTHER_DASHES[index // len(TASK_COLOURS) % len(OTHER_DASHES)],
    }


def variants(analysis: Analysis) -> dict[str, list[Method]]:
    """The methods of the aware variant and of the blind one, where there are any."""
    found = {
        "aware": [method for method in analysis.methods if not method.blind],
        "blind": [method for method in analysis.methods if method.blind],
    }
    return {variant: methods for variant, methods in found.items() if methods}


def families(analysis: Analysis) -> list[str]:
    """Names of methods without variant, in order."""
    return list(dict.fromkeys(method.family for method in analysis.methods))


def row_names(analysis: Analysis) -> list[str]:
    """Names of the methods where each is a row: without variant only where a row is of both variants."""
    return families(analysis) if len(variants(analysis)) > 1 else [method.name for method in analysis.methods]


def seeds_note(methods: Sequence[Method]) -> str:
    """How many seeds the methods have."""
    counts = [len(method.runs) for method in methods]
    low, high = min(counts), max(counts)
    if high == 1:
        return "one seed"
    if low == 1:
        return f"up to {high} seeds, some methods one seed"
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"


def mean_note(methods: Sequence[Method]) -> str:
    """What the title of means has to say of seeds and intervals."""
    if all(len(method.runs) == 1 for method in methods):
        return "one seed: no intervals"
    return f"mean over {seeds_note(methods)}, 95 % intervals"


def label(method: Method, others: Sequence[Method], name: str | None = None) -> str:
    """The method's name (default: with its variant), and its number of seeds where others have another."""
    shown = method.name if name is None else name
    if len({len(other.runs) for other in others}) == 1:
        return shown
    return f"{shown} ({'one seed' if len(method.runs) == 1 else f'{len(method.runs)} seeds'})"


def draw_curve(axes: Axes, curve: Curve | None, label: str, **style: Any) -> None:
    """The mean as a line and its interval as a band."""
    if curve is None:
        return
    alone = "o" if len(curve.x) == 1 else ""  # a line would not be seen
    axes.plot(curve.x, curve.mean, label=label, linewidth=1.5, marker=alone, **style)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.13, linewidth=0)


def draw_matrix(axes: Axes, matrix: NDArray[np.float64], tasks: Sequence[str], limit: float) -> None:
    """A heat map over pairs of tasks, with colours around 0; NaN stays empty.

    Args:
        axes: where.
        matrix: (T, T).
        tasks: names, T of them.
        limit: the number that has the strongest colour.
    """
    axes.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(tasks) <= MOST_NUMBERS:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                shade = "white" if abs(value) > 0.6 * limit else "black"
                rounded = round(value, 2) + 0.0  # no -0.00
                axes.text(j, i, f"{rounded:.2f}", ha="center", va="center", color=shade, fontsize="small")


def colour_limit(matrices: Iterable[NDArray[np.float64]]) -> float:
    """The largest absolute value in any of the matrices, for `draw_matrix`."""
    return max(0.01, *(float(np.nanmax(np.abs(matrix))) for matrix in matrices))


def legend_beside(axes: Axes, handles: Iterable[Artist] | None = None) -> None:
    """To the right of the panel, where it covers nothing; by default of the panel's own lines."""
    axes.legend(
        handles=handles_of([axes]) if handles is None else list(handles), loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )


def handles_of(panels: Iterable[Axes]) -> list[Artist]:
    """What a legend of all these panels shows, each label once."""
    by_label: dict[str, Artist] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            by_label.setdefault(text, handle)
    return list(by_label.values())


def variant_markers(analysis: Analysis) -> list[Line2D]:
    """Handles of a legend for markers that are filled in the aware variant and open in the blind one."""
    return [
        Line2D([], [], color="black", marker="o", linestyle="", label=variant, **marker(variant == "blind", "black"))
        for variant in variants(analysis)
    ]


def marker(blind: bool, colour: str) -> dict[str, Any]:
    """Filled in the aware variant, open in the blind one."""
    return {"markerfacecolor": "white" if blind else colour, "markeredgecolor": colour, "markersize": 5.5}


def in_steps(axes: Axes) -> None:
    """Environment steps as abscissae: 100k."""
    axes.set_xlabel(STEPS_LABEL)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def grid_of_panels(figure: Figure, count: int, columns: int, **options: Any) -> list[Axes]:
    """Panels row by row, those that are left over empty."""
    columns = min(columns, count)
    panels = list(figure.subplots(-(-count // columns), columns, squeeze=False, **options).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return panels[:count]


def title(figure: Figure, text: str) -> None:
    """Above all panels, in as many lines as the figure's width takes."""
    figure.suptitle(textwrap.fill(text, int(CHARACTERS_PER_INCH * figure.get_figwidth())))


def only_outer(panels: Sequence[Axes], columns: int, x: str | None = None, y: str | None = None) -> None:
    """Axis labels at the left column and at the lowest panel of each column only."""
    for index, axes in enumerate(panels):
        if y is not None and index % columns == 0:
            axes.set_ylabel(y)
        if index + columns >= len(panels):
            axes.tick_params(labelbottom=True)
            if x is not None:
                axes.set_xlabel(x)
        else:
            axes.set_xlabel("")


def save(figure: Figure, *paths: Path) -> None:
    """Write the figure to files whose names say the format, each in one step, after laying it out once."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # laid out: savefig would do so for every file
    for path in paths:
        kind = path.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {}
        with replacing(path) as file:
            figure.savefig(file, format=kind, metadata=metadata)
