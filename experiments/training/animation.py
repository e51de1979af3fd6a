"""The animated picture of `evaluate --picture`: an episode of each task, side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.program.figures import save_animation
from experiments.training.filming import COLUMNS, Frame, side_by_side

WIDTH = 900  # pixels of all frames side by side
FRAME_SECONDS = 0.06
HOLD_SECONDS = 2.5  # how long the last frame stays
EDGE = 2  # pixels of grey around the picture, so that white ground ends on a white page


def width_of_frames(count: int) -> int:
    """The width in pixels, an even number, of each of so many frames that stand side by side."""
    return WIDTH // min(COLUMNS, count) // 2 * 2


def animate(episodes: Sequence[Iterator[Frame]], path: Path) -> None:
    """Write an animated GIF or WebP of episodes side by side. When one is over, its last frame stays.

    Args:
        episodes: the frames (H, W, 3) of each episode, one for every `FRAME_SECONDS` seconds, and at least one.
        path: the file; its ending says in which format.
    """
    pictures: list[Frame] = []
    latest: dict[int, Frame] = {}
    for now in itertools.zip_longest(*episodes):
        latest.update({index: frame for index, frame in enumerate(now) if frame is not None})
        picture = side_by_side([latest[index] for index in range(len(episodes))])
        pictures.append(np.pad(picture, ((EDGE, EDGE), (EDGE, EDGE), (0, 0)), constant_values=128))
    save_animation(pictures, path, FRAME_SECONDS, HOLD_SECONDS)
