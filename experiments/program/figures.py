"""Writing figures of Matplotlib to files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from mtrl.files import replacing


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
