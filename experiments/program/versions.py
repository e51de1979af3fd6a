"""The versions of the software that a result was computed with."""

import importlib.metadata
import platform

import mtrl

__all__ = ["versions"]


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the packages, by name.

    Args:
        packages: names on the package index; `"mtrl"` is this library, whose name there is another.

    Raises:
        importlib.metadata.PackageNotFoundError: a package is not installed.
    """
    found = {name: mtrl.__version__ if name == "mtrl" else importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}
