"""The view of a training run in TensorBoard."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from experiments.program.locking import identity
from experiments.training.tracking.view import View

TENSORBOARD_FOLDER = "tensorboard"

MATRICES = ("cosine", "tau")
"""Metrics of pairs of tasks that are shown as heat maps. Their values lie in [-1, 1] or near this range."""

LINES_PER_IMAGE = 10

CHARTS = {
    "return of greedy episodes": "eval/{}/return",
    "return while training": "train/{}/return",
    "loss": "train/{}/loss",
    "weight that the balancer gives": "balancer/{}/weight",
}
"""Charts of the tab "Custom Scalars", each with a line per task; {} stands for the task's name."""


class TensorBoardView(TensorBoardOutputFormat, View):
    """Event files in `tensorboard/`: every metric as a scalar, and matrices over pairs of tasks as heat maps.

    The tab "Custom Scalars" shows `CHARTS`: all tasks in one chart, the returns first.

    Args:
        folder: the folder of the run.
        tasks: the names of the tasks, in order.
        continued_at: the environment step from which the run is continued. Later events, which an interrupted process
            may have left, are taken back. Default None: the run is new.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, tasks: Sequence[str], continued_at: int | None = None) -> None:
        purge_from = None if continued_at is None else continued_at + 1
        self._folder = folder / TENSORBOARD_FOLDER
        self.writer = SummaryWriter(str(self._folder), purge_step=purge_from)
        self._excepthook, threading.excepthook = threading.excepthook, self._thread_failed
        self._there = identity(self._folder)
        self._is_closed = False
        self._tasks = tuple(tasks)
        self._lines = 0
        self._next_image = dict.fromkeys(MATRICES, 0)
        if continued_at is None:
            lines = {name: [re.escape(tag.format(task)) for task in tasks] for name, tag in CHARTS.items()}
            self.writer.add_custom_scalars({"Tasks": {name: ["Multiline", tags] for name, tags in lines.items()}})

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write one line of metrics.

        Raises:
            FileNotFoundError: the folder was moved away. Another run may have taken its place.
        """
        if identity(self._folder) != self._there:
            raise FileNotFoundError(f"'{self._folder}' has been moved or replaced since the run began")
        for name in MATRICES:
            if self._lines >= self._next_image[name]:
                matrix = pair_matrix(key_values, name, self._tasks)
                if matrix is not None:
                    image = heat_map(matrix, self._tasks)
                    self.writer.add_image(f"balancer/{name}", image, step, dataformats="HWC")
                    self._next_image[name] = self._lines + LINES_PER_IMAGE
        self._lines += 1
        super().write(key_values, key_excluded, step)

    def end(self, finished: bool) -> None:
        """Close the file. If its folder was moved away, what is not written yet is dropped."""
        try:
            if identity(self._folder) == self._there:
                self.close()
        finally:
            threading.excepthook = self._excepthook

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """Pass on what ends a thread, but not what ends TensorBoard's: `write` and `end` raise that once more."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._excepthook(failure)


def pair_matrix(line: Mapping[str, Any], name: str, tasks: Sequence[str]) -> NDArray[np.float64] | None:
    """The metric `balancer/<name>/<a>_<b>` of all pairs of tasks, (T, T); None if the line has no value of it.

    A symmetric metric is logged in one order of each pair only; the other order gets the same value. The diagonal is
    NaN.
    """
    matrix = np.full((len(tasks), len(tasks)), np.nan)
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks):
            if i != j:
                other = line.get(f"balancer/{name}/{b}_{a}", np.nan)
                matrix[i, j] = line.get(f"balancer/{name}/{a}_{b}", other)
    return None if np.isnan(matrix).all() else matrix


def heat_map(matrix: NDArray[np.float64], tasks: Sequence[str], cell: int = 56) -> NDArray[np.uint8]:
    """A picture of a matrix over pairs of tasks, (H, W, 3): red at -1, white at 0, blue at 1, grey where it is NaN.

    It is drawn without Matplotlib, which takes a hundred times as long.

    Args:
        matrix: (T, T); entry (i, j) belongs to tasks i and j.
        tasks: the names of the tasks.
        cell: the smallest width and height of a cell in pixels. Default 56.
    """
    font = ImageFont.load_default(12)
    label = int(max(font.getlength(task) for task in tasks)) + 10  # pixels
    width, height, top = max(cell, label), cell, 22
    size = (label + width * len(tasks), top + height * len(tasks))
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for i, task in enumerate(tasks):
        draw.text((label - 5, top + height * (i + 0.5)), task, "black", font, anchor="rm")
        draw.text((label + width * (i + 0.5), top / 2), task, "black", font, anchor="mm")
        for j, value in enumerate(matrix[i].tolist()):
            left, upper = label + width * j, top + height * i
            draw.rectangle((left, upper, left + width - 2, upper + height - 2), _diverging(value))
            if not np.isnan(value):
                ink = "white" if abs(value) > 0.6 else "black"
                draw.text((left + width / 2, upper + height / 2), f"{value:+.2f}", ink, font, anchor="mm")
    return np.asarray(image)


def _diverging(value: float) -> tuple[int, int, int]:
    """A colour from red (-1) over white (0) to blue (1). People with any kind of colour vision can tell them apart."""
    if np.isnan(value):
        return (224, 224, 224)
    end = (33, 102, 172) if value > 0 else (178, 24, 43)
    share = min(abs(value), 1.0)
    red, green, blue = (round(255 + share * (colour - 255)) for colour in end)
    return red, green, blue
