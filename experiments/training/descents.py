"""The picture of `evaluate --picture`: an episode of each task, with what moves at several moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.program.figures import save

EDGE = "0.5"  # the grey of the line around a panel, without which white ground would run into a white page


def draw_descents(frames: Mapping[str, Sequence[NDArray[np.uint8]]], path: Path, moments: int = 12) -> None:
    """Draw one panel per task, which shows what moves, such as a craft, at moments from start to end.

    Args:
        frames: the frames (H, W, 3) of one episode, by the title of the panel.
        path: the file.
        moments: how many frames of each episode are shown at most. Default 12. There are fewer where what moves would
            lie on itself.
    """
    figure = Figure(figsize=(4.5 * len(frames), 3.3), dpi=150, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(frames)))
    for axes, (title, episode) in zip(panels, frames.items(), strict=True):
        axes.imshow(_overlaid(_apart(np.array(episode), moments)))
        axes.set_title(title)
        axes.set(xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set_color(EDGE)
    save(figure, path)


def _apart(frames: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """Those of the frames (N, H, W, 3) whose moving parts do not touch: the last one, and at most `most` in all."""
    moving = np.any(frames != np.median(frames, 0), -1)  # (N, H, W)
    taken = np.zeros(moving.shape[1:], bool)
    chosen: list[int] = []
    for index in range(len(frames))[::-1]:
        if not (moving[index] & taken).any():
            chosen.append(index)
            taken |= moving[index]
    kept = np.linspace(0, len(chosen) - 1, min(most, len(chosen))).round().astype(int)
    apart: NDArray[np.uint8] = frames[np.array(chosen)[kept][::-1]]
    return apart


def _overlaid(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One picture (H, W, 3) of frames (N, H, W, 3): each pixel as it differs most from what it mostly is."""
    usual = np.median(frames, 0)
    furthest = np.abs(frames - usual).sum(-1).argmax(0)  # (H, W): the number of a frame
    picture: NDArray[np.uint8] = np.take_along_axis(frames, furthest[None, ..., None], 0)[0]
    return picture
