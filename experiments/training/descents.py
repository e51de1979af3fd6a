"""The picture of `evaluate --picture`: the descent of each task, with the craft at several moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.program.figures import save


def draw_descents(frames: Mapping[str, Sequence[NDArray[np.uint8]]], path: Path, moments: int = 12) -> None:
    """Draw one panel per task, which shows the craft at `moments` moments from start to landing.

    Args:
        frames: the frames (H, W, 3) of one episode, by task.
        path: the file.
        moments: how many frames of each episode are shown. Default 12.
    """
    figure = Figure(figsize=(4.5 * len(frames), 3.3), dpi=150, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(frames)))
    for axes, (task, episode) in zip(panels, frames.items(), strict=True):
        chosen = np.linspace(0, len(episode) - 1, moments).round().astype(int)
        # The sky is black, so the brightest value of each pixel shows every craft.
        axes.imshow(np.max([episode[index] for index in chosen], 0))
        axes.set_title(task)
        axes.set_axis_off()
    save(figure, path)
