"""Writing figures of Matplotlib and animated pictures to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mtrl.files import replacing

GIF_COLOURS = 128
PALETTE_FRAMES = 8  # how many frames the colours of a GIF are taken from
WEBP_QUALITY = 80


def save(figure: Figure, *paths: Path) -> None:
    """Write the figure to files in the formats that their names end in, each file in one step.

    The layout is computed once, so that all files look the same.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # the layout is done; savefig would do it again for every file
    for path in paths:
        kind = path.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {}
        with replacing(path) as file:
            figure.savefig(file, format=kind, metadata=metadata)


def save_animation(frames: Sequence[NDArray[np.uint8]], path: Path, seconds: float, hold: float) -> None:
    """Write an animated picture that is repeated for ever.

    Args:
        frames: pictures (H, W, 3) of one size, of which there is at least one.
        path: the file, which ends in .gif or .webp.
        seconds: how long each frame is shown. Browsers show a GIF for whole hundredths of a second.
        hold: how long the last frame is shown.
    """
    images = [Image.fromarray(frame) for frame in frames]
    times = [round(1000 * seconds)] * (len(images) - 1) + [round(1000 * hold)]
    if path.suffix == ".gif":
        # One palette for all frames: with one for each, the colours of what stands still would flicker.
        few = [*frames[:: -(-len(frames) // PALETTE_FRAMES)], frames[-1]]
        palette = Image.fromarray(np.concatenate(few)).quantize(GIF_COLOURS)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    with replacing(path) as file:
        images[0].save(
            file,
            format=path.suffix.removeprefix("."),
            save_all=True,
            append_images=images[1:],
            duration=times,
            loop=0,
            quality=WEBP_QUALITY,
            method=6,
        )
