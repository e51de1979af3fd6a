"""A descent in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.program.figures import save


def descents(frames: Mapping[str, Sequence[NDArray[np.uint8]]], path: Path, moments: int = 12) -> None:
    """One panel per task: a descent in one picture, the craft shown at `moments` moments from start to landing."""
    figure = Figure(figsize=(4.5 * len(frames), 3.3), dpi=150, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(frames)))
    for axes, (task, of_task) in zip(panels, frames.items(), strict=True):
        chosen = np.linspace(0, len(of_task) - 1, moments).round().astype(int)
        # The sky is black: the brightest value of each pixel keeps every craft.
        axes.imshow(np.max([of_task[index] for index in chosen], 0))
        axes.set_title(task)
        axes.set_axis_off()
    save(figure, path)
