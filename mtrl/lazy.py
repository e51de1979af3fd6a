"""Packages whose public names are imported when they are first used. This module needs nothing but Python."""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["import_on_use"]


def import_on_use(package: str, homes: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """Return a `__getattr__` (PEP 562) for `package/__init__.py`, so that importing the package imports nothing else.

    `import mtrl.files` and `--help` of a program then need no PyTorch.

    Args:
        package: the package's own name, `__name__`.
        homes: the public names that each module defines, by the module's full name. A submodule of the package can
            be reached as an attribute, too.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    submodules = {home.removeprefix(f"{package}.") for home in homes if home.startswith(f"{package}.")}

    def import_name(name: str) -> Any:
        if name in home_of:
            value = getattr(import_module(home_of[name]), name)
            setattr(sys.modules[package], name, value)  # the next use finds it without this function
            return value
        if name in submodules:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return import_name
