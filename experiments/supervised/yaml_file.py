"""Reads a YAML file whose keys and types are those of dataclasses, and reports each mistake with its line.

The dataclass decides the type of a value, not YAML. Where a number is expected, `1e-3` is a number, although YAML 1.1
takes it for text. Where text is expected, `on` and `3` must be quoted. Values come from the file's syntax tree, so that
no tag can create an object, and aliases are not expanded beyond the depth of the dataclasses.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from experiments.program.flags import UsageError

LARGEST_FILE = 2**16  # bytes
LONGEST_QUOTE = 60
STANDARD_TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge", "value", "binary")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class YamlFile:
    """The values that a file sets.

    Attributes:
        path: the file.
        values: the values by section and key, with the types of the dataclass. It has no keys that the file leaves out.
        lines: the line of each key, counted from 1, for example `{"training": 3, "training.epochs": 4}`.
    """

    path: Path
    values: dict[str, dict[str, Any]]
    lines: dict[str, int]

    def error(self, key: str, problem: object) -> UsageError:
        """An error `FILE:LINE: problem` with the line of `key`, or of the nearest enclosing key that is in the file."""
        while key and key not in self.lines:
            key = re.sub(r"(\[\d+\]|\.?[^.\[\]]*)$", "", key)
        return UsageError(f"{self.path}:{self.lines.get(key, 1)}: {problem}")


def read_yaml(path: Path, kind: type[Any]) -> YamlFile:
    """Read a YAML file.

    Args:
        path: the file, a mapping of sections.
        kind: a dataclass whose fields are the sections. Each section is a dataclass.

    Raises:
        UsageError: the file does not exist or has a mistake, or PyYAML is not installed. The message is one line, with
            the file and the line of the mistake.
    """
    reader = _Reader(path)
    root = reader.compose()
    if root is None or reader.is_null(root):  # the file has nothing but comments
        return YamlFile(path, {}, {})
    values = {}
    for name, (section, node) in reader.entries(root, kind, "").items():
        values[name] = reader.fields(node, section, name)
    return YamlFile(path, values, reader.lines)


class _Reader:
    """Turns the nodes of one file into values. Nodes have the type `Any`, because PyYAML is optional."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, int] = {}

    def compose(self) -> Any:
        """The root of the syntax tree, or None if the file is empty."""
        content = self._content()
        try:
            import yaml  # noqa: PLC0415 - PyYAML is optional
        except ImportError:
            raise UsageError("reading --config needs PyYAML: pip install 'mtrl-balance[supervised]'") from None
        try:
            return yaml.compose(content, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = 1 if mark is None else mark.line + 1
            raise UsageError(f"{self.path}:{line}: {error.problem or error.context}") from None
        except (yaml.YAMLError, UnicodeError) as error:
            raise UsageError(f"{self.path}: not YAML ({error})") from None
        except RecursionError:
            raise UsageError(f"{self.path}: its values are nested too deeply") from None

    def _content(self) -> bytes:
        if not self.path.is_file():
            raise UsageError(f"no file at '{self.path}'; --config needs a YAML file")
        with self.path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UsageError(f"'{self.path}' is larger than {LARGEST_FILE} bytes; it is no file of settings")
        return content

    def fields(self, node: Any, kind: type[Any], place: str) -> dict[str, Any]:
        """The values that a mapping sets, with the types of the dataclass `kind`."""
        if self.is_null(node):  # `section:` with nothing in it
            return {}
        entries = self.entries(node, kind, place)
        return {name: self.value(child, hint, f"{place}.{name}") for name, (hint, child) in entries.items()}

    def entries(self, node: Any, kind: type[Any], place: str) -> dict[str, tuple[Any, Any]]:
        """The type of each key of a mapping, according to the dataclass `kind`, and the node of its value."""
        hints = get_type_hints(kind)
        found = {}
        for key, child in self._pairs(node, place):
            name = self._key(key, place)
            if name not in hints:
                close = difflib.get_close_matches(name, hints, n=1)
                advice = f"did you mean {close[0]}?" if close else f"keys are {', '.join(hints)}"
                raise self._error(key, f"unknown key {self._join(place, _short(name))}; {advice}")
            found[name] = (hints[name], child)
        return found

    def value(self, node: Any, hint: Any, place: str) -> Any:
        """The value of a node, whose type is `hint`."""
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag[18:] not in STANDARD_TAGS:
            raise self._error(node, f"{place} has the tag {_short(node.tag)!r}; tags are not accepted")
        if get_origin(hint) in (UnionType, Union) and NoneType in (options := get_args(hint)):
            if self.is_null(node):
                return None
            (hint,) = (option for option in options if option is not NoneType)
        if is_dataclass(hint) and isinstance(hint, type):
            return self._object(node, hint, place)
        if get_origin(hint) is tuple:
            return self._items(node, get_args(hint)[0], place)
        if get_origin(hint) is dict:
            return self._options(node, place)
        return self._scalar(node, hint, place)

    def _object(self, node: Any, kind: type[Any], place: str) -> Any:
        entries = self.entries(node, kind, place)
        for needed in fields(kind):
            if needed.default is MISSING and needed.default_factory is MISSING and needed.name not in entries:
                raise self._error(node, f"{place} has no {needed.name}")
        return kind(**{name: self.value(child, hint, f"{place}.{name}") for name, (hint, child) in entries.items()})

    def _items(self, node: Any, hint: Any, place: str) -> tuple[Any, ...]:
        if node.id != "sequence":
            raise self._error(node, f"{place} is {self._shown(node)}; expected a list")
        if len(node.value) > 1_000:
            raise self._error(node, f"{place} has {len(node.value)} entries; 1000 are the most")
        values = []
        for index, child in enumerate(node.value):
            self.lines.setdefault(f"{place}[{index}]", child.start_mark.line + 1)
            values.append(self.value(child, hint, f"{place}[{index}]"))
        return tuple(values)

    def _options(self, node: Any, place: str) -> dict[str, str | int | float | bool]:
        """A mapping from any keys to scalars of any type."""
        values: dict[str, str | int | float | bool] = {}
        for key, child in self._pairs(node, place):
            name = self._key(key, place)
            kinds = (bool, int, float) if child.id == "scalar" and child.style is None else ()
            parsed = next((value for kind in kinds if (value := _parse(child.value, kind)) is not None), None)
            values[name] = self.value(child, str, f"{place}.{name}") if parsed is None else parsed
        return values

    def _scalar(self, node: Any, hint: Any, place: str) -> Any:
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        expected = f"expected one of {', '.join(choices)}" if choices else f"expected {WORDS.get(hint, 'a value')}"
        problem = self._error(node, f"{place} is {self._shown(node)}; {expected}")
        if node.id != "scalar":
            raise problem
        if choices or hint is str:
            if choices and node.value not in choices:
                raise problem
            if node.tag != "tag:yaml.org,2002:str" and not choices:
                raise self._error(node, f"{place} is {self._shown(node)}; expected text (quote it)")
            return node.value
        value = _parse(node.value, hint) if node.style is None else None  # a quoted scalar is text
        if value is None:
            raise problem
        return value

    def _pairs(self, node: Any, place: str) -> list[tuple[Any, Any]]:
        if node.id != "mapping":
            where = place or "the file"
            raise self._error(node, f"{where} is {self._shown(node)}; expected keys with values")
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name, line = self._key(key, place), key.start_mark.line + 1
            if name in seen:
                raise self._error(key, f"{self._join(place, _short(name))} is set twice, in line {seen[name]} too")
            seen[name] = line
            self.lines[self._join(place, name)] = line
        return list(node.value)

    def _key(self, node: Any, place: str) -> str:
        if node.id != "scalar":
            raise self._error(node, f"a key of {place or 'the file'} is {self._shown(node)}; keys are words")
        name: str = node.value
        return name

    def is_null(self, node: Any) -> bool:
        """Whether a node is `null`, `~` or empty."""
        return bool(node.id == "scalar" and node.tag == "tag:yaml.org,2002:null" and node.style is None)

    def _error(self, node: Any, problem: str) -> UsageError:
        return UsageError(f"{self.path}:{node.start_mark.line + 1}: {problem}")

    @staticmethod
    def _shown(node: Any) -> str:
        if node.id != "scalar":
            return "a list" if node.id == "sequence" else "a mapping"
        return repr(_short(node.value)) if node.value else "empty"

    @staticmethod
    def _join(place: str, name: str) -> str:
        return f"{place}.{name}" if place else name


def _parse(text: str, kind: type[int] | type[float] | type[bool]) -> int | float | bool | None:
    """A plain scalar as a value of this kind, or None if it has another form."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    if kind is int:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."
