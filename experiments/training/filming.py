"""Films of episodes: captions on frames, frames side by side, and mp4 files that are complete or not there."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from experiments.program.flags import UsageError
from mtrl.files import replacing

Frame = NDArray[np.uint8]  # (H, W, 3), of even height and width

SMALLEST = 240  # pixels of the longer side of a frame; smaller pictures, as of grid worlds, are enlarged

COLUMNS = 4  # frames side by side; further frames go into further rows
GAP = 4  # pixels between frames; an even number, because the encoder needs even sizes
BAR = 28  # height of the caption, pixels
FONT_SIZE = 16
MARGIN = 10
WHITE, YELLOW = (255, 255, 255), (255, 225, 90)


def as_frame(picture: Any, task: str) -> Frame:
    """A picture that an environment has rendered, as a frame of a film.

    Args:
        picture: (H, W, 3), (H, W, 4) or (H, W), of integers from 0 to 255.
        task: the name of the task, for the message.

    Raises:
        UsageError: it is no such picture.
    """
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, 2)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape or pixels.dtype.kind not in "iu":
        what = f"{pixels.dtype} of shape {pixels.shape}" if pixels.size > 1 else type(picture).__name__
        raise UsageError(f"task {task!r} can't be filmed: render() gives {what}, not a picture (H, W, 3) of integers")
    pixels = pixels[..., :3].astype(np.uint8, copy=False)
    if (factor := -(-SMALLEST // max(pixels.shape[:2]))) > 1:
        pixels = pixels.repeat(factor, 0).repeat(factor, 1)
    height, width = (size % 2 for size in pixels.shape[:2])  # the encoder needs even sizes
    return np.pad(pixels, ((0, height), (0, width), (0, 0))) if height or width else pixels


def captioned(frame: Frame, texts: Sequence[str], emphasis: bool = False) -> Frame:
    """A copy of the frame (H, W, 3) with a translucent bar at the top, and texts on the bar.

    Args:
        frame: the frame, which is not changed.
        texts: the texts. Each begins at a fixed place, so that it stands still while the text before it changes. A text
            that is too long for its place is shortened.
        emphasis: whether the last text has a colour of its own. Default False.
    """
    # The bar is mixed with grey, because a darker bar would not be visible on a black picture.
    bar = Image.fromarray((frame[:BAR] // 2 + 32).astype(np.uint8))
    draw, font = ImageDraw.Draw(bar), _font()
    room = frame.shape[1] / len(texts)
    for index, text in enumerate(texts):
        colour = YELLOW if emphasis and index == len(texts) - 1 else WHITE
        draw.text((MARGIN + index * room, BAR / 2), _shortened(text, room - MARGIN), colour, font, anchor="lm")
    return np.concatenate([np.asarray(bar), frame[BAR:]])


def side_by_side(frames: Sequence[Frame]) -> Frame:
    """One picture of several frames, in rows of at most four, with grey lines between them.

    A frame that is smaller than the largest stands in the upper left corner of its place.
    """
    height, width = (max(frame.shape[side] for frame in frames) for side in (0, 1))
    columns = min(COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    picture = np.full(shape, 128, np.uint8)
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        top, left = row * (height + GAP), column * (width + GAP)
        picture[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return picture


@contextmanager
def film(path: Path, fps: int) -> Iterator[Callable[[Frame], None]]:
    """Give a function that adds a frame to an mp4 file. The file is at `path` when the block has ended.

    If the block fails, the file that was at `path` before stays.

    Args:
        path: the file.
        fps: frames per second. All frames have the same size, with an even width and height, and there is at least one.

    Raises:
        UsageError: the encoder cannot write the file.
    """
    with replacing(path) as file, ExitStack() as stack:
        # With larger macro blocks the encoder would round the size and scale the picture. The index goes to the front
        # of the file, so that a browser can show the film while it loads.
        options = {"fps": fps, "macro_block_size": 1, "output_params": ["-f", "mp4", "-movflags", "+faststart"]}
        encoder: Generator[None, Frame | None, None] | None = None
        added = 0

        def add(frame: Frame) -> None:
            nonlocal encoder, added
            with _encoding(path):
                if encoder is None:
                    size = (frame.shape[1], frame.shape[0])
                    encoder = stack.enter_context(closing(imageio_ffmpeg.write_frames(file.name, size, **options)))
                    encoder.send(None)
                encoder.send(np.ascontiguousarray(frame))
            added += 1

        yield add
        with _encoding(path):
            stack.close()
            # The encoder does not report whether it succeeded, so the frames in the file are counted.
            written, _ = imageio_ffmpeg.count_frames_and_secs(file.name)
            if written != added:
                raise OSError(f"{added} frames were added and {written} are there")


@contextmanager
def _encoding(path: Path) -> Iterator[None]:
    """Turn a failure of the encoder into a `UsageError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"cannot write '{path}': the encoder gave up, perhaps for a full disk ({reason})") from error


def _shortened(text: str, room: float) -> str:
    """The text, cut to as many characters as fit into `room` pixels."""
    if _font().getlength(text) <= room:
        return text
    kept = next(n for n in range(len(text) - 1, -1, -1) if not n or _font().getlength(text[:n] + "...") <= room)
    return text[:kept] + "..."


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
