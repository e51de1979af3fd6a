"""Checks, before any work begins, that results can be written where the user wants them; and writing them as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.program.flags import UsageError
from mtrl.files import replacing


def check_folder(folder: Path, needs: str = "results need a folder") -> None:
    """Raise `UsageError` if a file is in the place of `folder` or of one of the folders around it."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UsageError(f"'{path}' is a file; {needs}")


def check_file(path: Path, needs: str = "a file of this name belongs there") -> None:
    """Raise `UsageError` if a folder is in the place of the file `path`."""
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder; {needs}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write in one step, so that a reader never sees half a file."""
    with replacing(path) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())
