"""The moving picture of the valley: one panel for each balancer, in which the paths grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from experiments.analysis.plots.style import RC
from experiments.program.figures import save_animation
from experiments.program.outputs import check_file, check_folder
from experiments.studies.problems import valley
from experiments.studies.reports.static_heuristics import train_valley
from experiments.studies.static_heuristics import StaticHeuristicsConfig
from experiments.studies.valley_film import ValleyFilmConfig

Array = NDArray[np.float64]

MOVING = 80  # frames in which the paths grow
FRAME_SECONDS = 0.07
HOLD_SECONDS = 4.0
INK, STAR = "#0072B2", "#D55E00"
TITLES = {"naive": "the plain sum", "static": "PCGrad's rule"}  # the others are called by their names


def draw(config: ValleyFilmConfig) -> None:
    """Train with every balancer from the same start, and write the moving picture.

    Raises:
        UsageError: the file cannot be written.
    """
    check_file(config.output, "a picture needs a file")
    check_folder(config.output.parent, "a picture needs a folder")
    study = StaticHeuristicsConfig(seeds=(str(config.seed),), steps=config.steps, quiet=True)
    _, points = train_valley(study)
    paths = {method: np.array(path) for method, path in points.items()}
    save_animation(frames(paths), config.output, FRAME_SECONDS, HOLD_SECONDS)
    print(f"picture in {config.output}")


def frames(paths: Mapping[str, Array]) -> list[NDArray[np.uint8]]:
    """The frames (H, W, 3) in which the path (P, 2) of each method grows from its start to its end."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.0, 2.5), dpi=100, layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)  # Matplotlib's types lack its methods
        panels = figure.subplots(1, len(paths), sharex=True, sharey=True, squeeze=False)[0]
        landscape = _landscape(np.concatenate(list(paths.values())))
        lines = [_panel(axes, path, landscape) for axes, path in zip(panels, paths.values(), strict=True)]
        last = max(map(len, paths.values())) - 1
        pictures: list[NDArray[np.uint8]] = []
        for update in np.unique(np.linspace(0, last, MOVING).round().astype(int)):
            for axes, (line, star), (method, path) in zip(panels, lines, paths.items(), strict=True):
                passed = path[: update + 1]
                line.set_data(*passed.T)
                star.set_data(*passed[-1:].T)
                axes.set_title(f"{TITLES.get(method, method)}\nloss {_loss(passed[-1]):.0f}")
            figure.suptitle(f"Two losses, one start: update {update} of {last}; lighter is lower")
            if not pictures:
                canvas.draw()
                figure.set_layout_engine("none")  # the panels stay where they are
            canvas.draw()
            pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pictures


def _landscape(points: Array) -> tuple[Array, Array]:
    """A grid around the points (2, 160, 160), and the sum of the two losses on it (160, 160)."""
    low, high = points.min(0) - 0.7, points.max(0) + 0.7
    grid = np.stack(np.meshgrid(np.linspace(low[0], high[0], 160), np.linspace(low[1], high[1], 160)))
    return grid, valley(torch.from_numpy(grid).float(), torch.zeros(1, 2)).sum(0).numpy()


def _panel(axes: Axes, path: Array, landscape: tuple[Array, Array]) -> tuple[Line2D, Line2D]:
    """Draw the valley and the start. The line and the star, which move, are given back."""
    grid, height = landscape
    axes.contourf(*grid, height, levels=20, cmap="Greys", alpha=0.6)
    axes.plot(*path[0], "o", color=INK, markersize=4)
    (line,) = axes.plot([], [], color=INK, linewidth=1.2)
    (star,) = axes.plot([], [], "*", color=STAR, markersize=9)
    axes.set(xticks=[], yticks=[])
    return line, star


def _loss(point: Array) -> float:
    """The mean of the two losses at a point (2,), without noise."""
    return float(valley(torch.from_numpy(point).float(), torch.zeros(1, 2)).mean())
