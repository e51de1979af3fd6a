"""Checks, before any work begins, that results can be written where the user wants them."""

from __future__ import annotations

from pathlib import Path

from experiments.program.flags import UsageError


def check_folder(folder: Path, needs: str = "results need a folder") -> None:
    """Raise `UsageError` if a file is in the place of `folder` or of one of the folders around it."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UsageError(f"'{path}' is a file; {needs}")


def check_file(path: Path, needs: str = "a file of this name belongs there") -> None:
    """Raise `UsageError` if a folder is in the place of the file `path`."""
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder; {needs}")
