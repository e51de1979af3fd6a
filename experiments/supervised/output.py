"""What the programs leave on disk and show in the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.program.versions import versions
from experiments.supervised.settings import Settings


def describe(settings: Settings) -> dict[str, Any]:
    """For config.json and comparison.json: the settings, and the versions that they ran on."""
    packages = ["mtrl", "torch", "numpy"] + ["scikit-learn"] * (settings.data.source == "digits")
    return {"settings": settings.as_json(), "versions": versions(*packages)}


@contextmanager
def log_to(path: Path | None, level: str) -> Iterator[logging.Logger]:
    """A logger of its own that writes to `path`, anew; to nowhere for None. No other logger is touched.

    Raises:
        OSError: the file can't be written, now or at a later message.
    """
    logger = logging.Logger("experiments.supervised", level)
    if path is None:
        logger.addHandler(logging.NullHandler())
        yield logger
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        handler.close()


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Raise what went wrong, where logging would print it and go on."""
        raise  # noqa: PLE0704 - logging calls this while it handles the error
