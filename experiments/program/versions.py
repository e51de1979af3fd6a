"""The versions of the software that a result was computed with."""

import importlib.metadata
import platform

import mtrl

__all__ = ["versions"]


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, of `mtrl` and of other installed packages, by name.

    Args:
        packages: names of distributions on the package index.

    Raises:
        importlib.metadata.PackageNotFoundError: a package is not installed.
    """
    others = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), "mtrl": mtrl.__version__, **others}
