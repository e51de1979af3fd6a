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
ROW = 24  # height of a row of the caption, pixels
FONT_SIZE = 16
MARGIN = 10
GROUND, WHITE, GREY, YELLOW = (32, 34, 40), (255, 255, 255), (190, 195, 205), (255, 225, 90)
GREEN, RED = (120, 230, 140), (255, 130, 115)
VERDICT_COLOURS = {"landed": GREEN, "solved": GREEN, "crashed": RED, "flew away": RED, "failed": RED}


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


def captioned(frame: Frame, texts: Sequence[str], title: str = "", verdict: str = "") -> Frame:
    """The frame (H, W, 3) with a dark strip beneath it, on which texts stand, so that they hide nothing.

    Args:
        frame: the frame, which is not changed.
        texts: the texts of the last row. Each begins at a fixed place, so that it stands still while the text before it
            changes. A text that is too long for its place is shortened.
        title: the text of a row above these. Default: there is no such row.
        verdict: a word in capitals at the right of that row, in a colour that fits it. Default: nothing.
    """
    width = frame.shape[1]
    rows = 2 if title else 1
    strip = Image.new("RGB", (width, rows * ROW + 4), GROUND)
    draw, font = ImageDraw.Draw(strip), _font()
    if title:
        taken = font.getlength(verdict.upper()) + 2 * MARGIN if verdict else MARGIN
        draw.text((MARGIN, 2 + ROW / 2), _shortened(title, width - MARGIN - taken), WHITE, font, anchor="lm")
        colour = VERDICT_COLOURS.get(verdict, YELLOW)
        draw.text((width - MARGIN, 2 + ROW / 2), verdict.upper(), colour, font, anchor="rm")
    room = width / len(texts)
    for index, text in enumerate(texts):
        place = (MARGIN + index * room, 2 + (rows - 0.5) * ROW)
        draw.text(place, _shortened(text, room - MARGIN), GREY if title else WHITE, font, anchor="lm")
    return np.concatenate([frame, np.asarray(strip)])


def with_gust(frame: Frame, gust: float) -> Frame:
    """A copy of the frame (H, W, 3) with an arrow at its top, on the left, for a push from the side.

    Args:
        frame: the frame.
        gust: the push as a share of the strongest one, from -1 (to the left) to 1 (to the right).
    """
    picture = Image.fromarray(frame)
    draw, middle, top = ImageDraw.Draw(picture), frame.shape[1] / 5, 0.06 * frame.shape[0]
    tip = middle + gust * frame.shape[1] / 6
    barb = np.copysign(min(0.02 * frame.shape[1], abs(tip - middle)), gust)
    draw.line((middle, top - 5, middle, top + 5), YELLOW, 2)
    draw.line((middle, top, tip, top), YELLOW, 3)
    draw.polygon([(tip + barb / 2, top), (tip - barb / 2, top - 7), (tip - barb / 2, top + 7)], YELLOW)
    return np.asarray(picture)


def shrunk(frame: Frame, width: int) -> Frame:
    """The frame (H, W, 3) at a width of at most `width` pixels, which is even, with an even height."""
    if frame.shape[1] <= width:
        return frame
    height = 2 * round(frame.shape[0] * width / frame.shape[1] / 2)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


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
