"""The picture of `evaluate --picture`: an episode of each task, with what moves at several moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.program.figures import save


def draw_descents(frames: Mapping[str, Sequence[NDArray[np.uint8]]], path: Path, moments: int = 12) -> None:
    """Draw one panel per task, which shows what moves, such as a craft, at `moments` moments from start to end.

    Args:
        frames: the frames (H, W, 3) of one episode, by task.
        path: the file.
        moments: how many frames of each episode are shown. Default 12.
    """
    figure = Figure(figsize=(4.5 * len(frames), 3.3), dpi=150, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(frames)))
    for axes, (task, episode) in zip(panels, frames.items(), strict=True):
        chosen = np.linspace(0, len(episode) - 1, moments).round().astype(int)
        axes.imshow(_overlaid(np.array([episode[index] for index in chosen])))
        axes.set_title(task)
        axes.set_axis_off()
    save(figure, path)


def _overlaid(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One picture (H, W, 3) of frames (N, H, W, 3): each pixel as it differs most from what it mostly is."""
    usual = np.median(frames, 0)
    furthest = np.abs(frames - usual).sum(-1).argmax(0)  # (H, W): the number of a frame
    picture: NDArray[np.uint8] = np.take_along_axis(frames, furthest[None, ..., None], 0)[0]
    return picture
