"""Films of episodes: frames with a caption, several side by side, and mp4 files that are whole or not there."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from experiments.program.flags import UsageError
from mtrl.files import replacing

Frame = NDArray[np.uint8]  # (H, W, 3)

COLUMNS = 4  # frames side by side; more go into further rows
GAP = 4  # pixels between them; even, as the encoder needs even sizes
BAR = 28  # height of the caption, pixels
FONT_SIZE = 16
MARGIN = 10
WHITE, YELLOW = (255, 255, 255), (255, 225, 90)


def captioned(frame: Frame, texts: Sequence[str], emphasis: bool = False) -> Frame:
    """The frame (H, W, 3) with a translucent bar at its top and texts on it; the frame itself stays as it was.

    Args:
        frame: what is shown.
        texts: each begins at its own place, so that it stands still while another changes. Shortened where need be.
        emphasis: whether the last text is set off by its colour.
    """
    # Half and half with grey: on the landers' black sky a darker bar would not be seen.
    bar = Image.fromarray((frame[:BAR] // 2 + 32).astype(np.uint8))
    draw, font = ImageDraw.Draw(bar), _font()
    room = frame.shape[1] / len(texts)
    for index, text in enumerate(texts):
        colour = YELLOW if emphasis and index == len(texts) - 1 else WHITE
        draw.text((MARGIN + index * room, BAR / 2), _shortened(text, room - MARGIN), colour, font, anchor="lm")
    return np.concatenate([np.asarray(bar), frame[BAR:]])


def side_by_side(frames: Sequence[Frame]) -> Frame:
    """Frames of one size in one picture, in rows of four at most, with grey lines between them."""
    height, width, _ = frames[0].shape
    columns = min(COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    picture = np.full(shape, 128, np.uint8)
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        top, left = row * (height + GAP), column * (width + GAP)
        picture[top : top + height, left : left + width] = frame
    return picture


@contextmanager
def film(path: Path, fps: int) -> Iterator[Callable[[Frame], None]]:
    """Something that adds each frame it is called with to an mp4, which is at `path` once the block has ended.

    A block that fails leaves what was there before.

    Args:
        path: the file.
        fps: frames per second. Frames are all of one size, even in both directions; there is at least one.

    Raises:
        UsageError: the encoder can't write it.
    """
    with replacing(path) as file, ExitStack() as stack:
        # Rounding sizes to the encoder's blocks would scale the picture. The index goes to the front of the file, so
        # that a browser shows it while it loads.
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
            # The encoder does not tell how it ended.
            written, _ = imageio_ffmpeg.count_frames_and_secs(file.name)
            if written != added:
                raise OSError(f"{added} frames were added and {written} are there")


@contextmanager
def _encoding(path: Path) -> Iterator[None]:
    """Raise `UsageError` where the encoder fails."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"cannot write '{path}': the encoder gave up, perhaps for a full disk ({reason})") from error


def _shortened(text: str, room: float) -> str:
    """As much of the text as `room` pixels hold."""
    if _font().getlength(text) <= room:
        return text
    kept = next(n for n in range(len(text) - 1, -1, -1) if not n or _font().getlength(text[:n] + "...") <= room)
    return text[:kept] + "..."


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
