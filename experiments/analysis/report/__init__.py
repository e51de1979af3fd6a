"""The report of a comparison: one HTML page with interactive plots that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.analysis.comparison import Analysis
from experiments.program.flags import UsageError
from experiments.program.stopping import disk_errors
from mtrl.files import replacing

__all__ = ["REPORT_FILE", "check", "write"]

REPORT_FILE = "report.html"


def check(video_dir: Path | None = None) -> None:
    """Check that a report can be made, before any work is done.

    Raises:
        UsageError: a package of the extra `report` is missing, or `video_dir` is no folder.
    """
    try:
        import jinja2  # noqa: F401, PLC0415
        import markdown_it  # noqa: F401, PLC0415
        import plotly  # noqa: F401, PLC0415
    except ImportError as error:
        raise UsageError(f"--html needs the package {error.name}: pip install 'mtrl-balance[report]'") from None
    if video_dir is not None and not video_dir.is_dir():
        raise UsageError(f"argument --video-dir: '{video_dir}' is not a folder")


def _find_videos(analysis: Analysis, folder: Path | None = None) -> dict[Path, str]:
    """Captions by path of the mp4 files in the folders of all runs and in `folder`, in order."""
    found = {
        path: f"{method.name}, seed {run.seed}: {path.stem}"
        for method in analysis.methods
        for run in method.runs
        for path in _films(run.folder)
    }
    if folder is not None:
        for path in _films(folder):
            found.setdefault(path, path.relative_to(folder).with_suffix("").as_posix())
    return found


def _films(folder: Path) -> list[Path]:
    # Symbolic links are left out: in the folder of a run by someone else, one may lead to a private file.
    return sorted(path for path in folder.rglob("*.mp4") if path.is_file() and not path.is_symlink())


def write(
    analysis: Analysis, path: Path, *, command: str, skipped: Sequence[str] = (), video_dir: Path | None = None
) -> Path:
    """Write the report of `analysis` to `path` and return it. The same arguments give the same bytes.

    Args:
        analysis: the results that the report shows.
        path: the HTML file; it is replaced in one step.
        command: the command line that makes the report.
        skipped: for each folder that was left out, a line that says why.
        video_dir: a folder with mp4 files to show besides those in the folders of runs.

    Raises:
        UsageError: `path` cannot be written.
    """
    from experiments.analysis.report.page import render  # noqa: PLC0415 - it needs the extra `report`

    videos = _find_videos(analysis, video_dir)
    page = render(analysis, path.parent, command=command, skipped=skipped, videos=videos)
    with disk_errors(path.parent, UsageError), replacing(path) as file:
        file.write(page.encode(errors="backslashreplace"))
    return path
