"""Figures of one recording: what `python -m experiments.plot_recording` does."""

from __future__ import annotations

from experiments.analysis.config import PlotRecordingConfig
from experiments.analysis.plots import recording as figures
from experiments.program.flags import UsageError
from experiments.program.outputs import check_file, check_folder
from experiments.program.stopping import disk_errors


def plot(config: PlotRecordingConfig) -> None:
    """Write losses.png, weights.png, cosines.png and diagnostics.png, as far as the recording has data for them.

    Raises:
        BrokenRunError: the file is no recording or cannot be read.
        UsageError: there is nothing to draw, or an output is in the way, and nothing is written then; or the disk is
            full.
    """
    recording = figures.Recording.read(config.recording)
    if not recording.tasks:
        raise UsageError(f"'{config.recording}' holds no task's loss or weight yet; there is nothing to draw")
    folder = config.recording.parent if config.output_dir is None else config.output_dir
    paths = {name: folder / f"{name}.png" for name in figures.FIGURES}
    check_folder(folder, "figures need a folder")
    for path in paths.values():
        check_file(path, "a figure needs a file")
    with disk_errors(folder, UsageError):
        drawn = [path.name for name, path in paths.items() if figures.draw(name, recording, path)]
    print(f"{', '.join(drawn)} in {folder}")
