"""The picture of `evaluate --picture`: an episode of each task, with what moves at several moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.program.figures import save

TOUCH = 0.05  # the share of what moves that may lie on another frame's; flags that wave are no reason to leave one out
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
        axes.imshow(_overlaid(np.array(episode), moments))
        axes.set_title(title)
        axes.set(xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set_color(EDGE)
    save(figure, path)


def _overlaid(frames: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """One picture (H, W, 3) of at most `most` of the frames (N, H, W, 3), whose moving parts hardly touch."""
    frames = frames[_moved(frames)]
    usual = np.sort(frames, 0)[len(frames) // 2]  # unlike np.median, it has no values between two frames' values
    moving = np.any(frames != usual, -1)  # (N, H, W)
    picture: NDArray[np.uint8] = usual.copy()
    for index in _apart(moving, most):
        picture[moving[index]] = frames[index][moving[index]]
    return picture


def _moved(frames: NDArray[np.uint8]) -> list[int]:
    """Frames that differ enough from one another, the last one first.

    Otherwise, what stands still for most of the time would pass for a part of the background.
    """
    kept = [len(frames) - 1]
    furthest = max(_difference(frame, frames[-1]) for frame in frames)
    for index in range(len(frames) - 1)[::-1]:
        if _difference(frames[index], frames[kept[-1]]) > furthest / 2:
            kept.append(index)
    return kept


def _difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """The number of pixels that differ between two pictures (H, W, 3)."""
    return int(np.any(one != other, -1).sum())


def _apart(moving: NDArray[np.bool_], most: int) -> list[int]:
    """The frames, at most `most`, of those whose moving parts (N, H, W) hardly touch. The first one is among them."""
    taken = np.zeros(moving.shape[1:], bool)
    chosen: list[int] = []
    for index in range(len(moving)):
        if (moving[index] & taken).sum() <= TOUCH * moving[index].sum():
            chosen.append(index)
            taken |= moving[index]
    return [chosen[place] for place in np.linspace(0, len(chosen) - 1, min(most, len(chosen))).round().astype(int)]
