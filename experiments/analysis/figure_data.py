"""What a figure consists of, whoever draws it: panels with lines, points or matrices, axes, and a caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from experiments.analysis.arrays import Array
from experiments.analysis.intervals import Estimate
from experiments.analysis.looks import Look
from experiments.analysis.replicates import Curve

Quantity = Literal["steps", "return", "share", "coefficient", "rotation"]


@dataclass(frozen=True)
class Key:
    """A method or a task, as a legend shows it."""

    id: str  # the same in all figures
    name: str
    look: Look
    blind: bool = False  # whether it is a method of the blind variant


@dataclass(frozen=True)
class Axis:
    """An axis of a figure."""

    label: str
    quantity: Quantity
    limits: tuple[float, float] | None = None  # the same for all panels; None: those that the renderer finds
    mark: float | None = None  # where a dotted line stands in every panel


@dataclass(frozen=True)
class Line:
    """A curve with its intervals."""

    key: Key
    label: str  # in the legend; the same for all lines that are there for comparison only
    curve: Curve
    end: float | None = None  # the value after training, drawn as a marker behind the end of the curve


@dataclass(frozen=True)
class Point:
    """An estimate with its interval."""

    key: Key
    label: str
    estimate: Estimate
    place: float  # coordinate on the other axis
    says: str  # the numbers in words, in one or more lines
    seeds: Mapping[int, float] = field(default_factory=dict)  # the values of single seeds; empty for one seed
    reached: str = ""  # `9/10` where only 9 of 10 seeds reached what the figure is about


@dataclass(frozen=True)
class Panel:
    """One plot of a figure: lines, points or a matrix."""

    title: str
    lines: Sequence[Line] = ()
    points: Sequence[Point] = ()
    matrix: Array | None = None  # (T, T)
    tasks: Sequence[str] = ()  # names of the rows and columns of the matrix, (T,)
    variant: str = ""  # the variant, if the panel shows methods of one variant
    key: Key | None = None  # the method, if the panel shows one method alone
    baselines: Mapping[str, float] = field(default_factory=dict)  # by variant: where lines mark the baseline
    mark: float | None = None  # where a dotted line stands on the axis of returns of this panel
    limits: tuple[float, float] | None = None  # of the axis of returns, where those of the panels differ


@dataclass(frozen=True)
class FigureData:
    """What all figures have."""

    name: str  # of its files
    title: str
    note: str  # the caption, in whole sentences
    panels: Sequence[Panel]


@dataclass(frozen=True)
class CurveFigure(FigureData):
    """Curves. There is a panel for each task and variant, for each variant, or for each method."""

    x: Axis
    y: Axis
    panel_per: Literal["task and variant", "variant", "method"]
    keys: Sequence[Key] = ()  # legend of tasks, where lines are tasks
    last: float | None = None  # the last step
    band_note: str = ""  # belongs to the caption where intervals are drawn

    def mark(self, panel: Panel) -> tuple[float | None, Literal["x", "y"]]:
        """Where a dotted line stands in a panel, and on which axis."""
        on: Literal["x", "y"] = "x" if self.x.quantity == "return" or self.x.mark is not None else "y"
        return (self.x if on == "x" else self.y).mark if panel.mark is None else panel.mark, on


@dataclass(frozen=True)
class RowFigure(FigureData):
    """Estimates along a horizontal axis, with a row for each method; both variants of a method share its row.

    Where the estimates are of tasks, `keys` is their legend.
    """

    x: Axis
    rows: Sequence[str]
    both_variants: bool
    last: float | None = None  # the last step; points beyond it mean "never"
    keys: Sequence[Key] = ()


@dataclass(frozen=True)
class SizeFigure(FigureData):
    """Estimates by the size of the network. Networks of one size stand side by side at the place of this size."""

    sizes: Sequence[int]  # of all panels, in order; the first stands at 0, the next at 1
    y: Axis


@dataclass(frozen=True)
class MatrixFigure(FigureData):
    """Heat maps over pairs of tasks, on a scale of colours from -1 to 1. NaN stays empty."""

    unit: str
    says: str  # what a number means, in words with the fields {row}, {column} and {value}
    x: str | None = None
    y: str | None = None
