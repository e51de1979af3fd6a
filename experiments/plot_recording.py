"""`python -m experiments.plot_recording`: figures of what an `mtrl.Recorder`, or one training run, has recorded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.program.command import run
from experiments.program.flags import UsageError


@dataclass(frozen=True)
class PlotRecordingConfig:
    """Draw the losses, task weights, cosines between task gradients and other diagnostics of one recording, as PNG."""

    recording: tyro.conf.Positional[Path]
    """The file that an `mtrl.Recorder` has written, or the `metrics.jsonl` of a training run."""

    output_dir: Path | None = None
    """Where the figures go. Default: the recording's folder."""


def plot(config: PlotRecordingConfig) -> None:
    """Write losses.png, weights.png, cosines.png and diagnostics.png, those of them that the recording has data for.

    Raises:
        RecordingError: the file is no recording.
        UsageError: there is nothing to draw, or an output is in the way, and nothing is written then; or the disk is
            full.
        OSError: the file can't be read.
    """
    # Slow to load, and --help needs none of it.
    from experiments.analysis.plots.recording import FIGURES, Recording, draw  # noqa: PLC0415
    from experiments.program.stopping import disk_errors  # noqa: PLC0415
    from mtrl.recorder import read_recording  # noqa: PLC0415

    recording = Recording(config.recording, read_recording(config.recording))
    if not recording.tasks:
        raise UsageError(f"'{config.recording}' holds no task's loss or weight yet; there is nothing to draw")
    folder = config.recording.parent if config.output_dir is None else config.output_dir
    paths = {name: folder / f"{name}.png" for name in FIGURES}
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise UsageError(f"'{parent}' is a file; figures need a folder")
    for path in paths.values():
        if path.is_dir():
            raise UsageError(f"'{path}' is a folder; a figure needs a file")
    with disk_errors(folder, UsageError):
        drawn = [path.name for name, path in paths.items() if draw(name, recording, path)]
    print(f"{', '.join(drawn)} in {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and return the exit status."""
    return run(plot, PlotRecordingConfig, argv, prog="experiments.plot_recording")


if __name__ == "__main__":
    sys.exit(main())
