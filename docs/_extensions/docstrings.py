"""Docstrings as they stand in the source, for Sphinx.

- A block that is indented deeper than the paragraph before it is a formula or a program: it is shown as it stands.
- A bar is a bar, as in |g|, and no markup.
- A description that begins with one letter and a full stop, such as `num_tasks: T.`, is no list.
- Limits in the type of a setting, such as `Annotated[int, Limits(least=1)]`, become a sentence.
"""

import re
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from sphinx.application import Sphinx

from mtrl.limits import Limits
from mtrl.rl.settings import ReplaySettings

LETTER = re.compile(r"^(\s+\*{0,2}\w+: )([A-Za-z]\.)(?=\s|$)")
WORDS = {"least": "at least", "most": "at most", "above": "above", "below": "below"}


def indent_of(line: str) -> int:
    """The number of spaces before the first letter."""
    return len(line) - len(line.lstrip())


def with_literal_blocks(lines: list[str]) -> list[str]:
    """The docstring with a directive before every block of a formula or a program, and bars escaped elsewhere."""
    done: list[str] = []
    before, literal = "", False  # the last line of text outside of literal blocks
    for line in lines:
        if line.strip():
            deeper = indent_of(line) > indent_of(before)
            if literal:
                literal = deeper
            elif deeper and done and not done[-1].strip() and not line.lstrip().startswith(("- ", "* ")):
                literal = True
                if not before.rstrip().endswith("::"):
                    done += [" " * indent_of(before) + ".. code-block:: text", ""]
            before = before if literal else line
        done.append(line if literal else LETTER.sub(r"\1\\\2", line.replace("|", r"\|")))
    return done


def show_as_it_stands(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before Napoleon reads the sections. It may not read attributes, where it would look for types."""
    lines[:] = with_literal_blocks(lines)
    if what in ("attribute", "data", "property"):
        ATTRIBUTES[name] = lines.copy()


def limits_of(kind: Any) -> str:
    """The limits in a type as words, such as "at least 0, at most 1"."""
    found = []
    for part in [kind, *get_args(kind)]:
        if get_origin(part) is Annotated:
            found += [limits for limits in part.__metadata__ if isinstance(limits, Limits)]
    return "; ".join(
        ", ".join(f"{WORDS[rule]} {number:,}" for rule, number in asdict(limits).items() if number is not None)
        for limits in found
    )


def finish_attributes(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """After Napoleon: the text of an attribute as it was, and then the limits of a setting."""
    if what not in ("attribute", "data", "property"):
        return
    lines[:] = ATTRIBUTES.pop(name)
    owner, _, field = name.rpartition(".")
    if limits := LIMITS.get((owner.rpartition(".")[2], field)):
        lines += ["", f"Limits: {limits}.", ""]


ATTRIBUTES: dict[str, list[str]] = {}
LIMITS: dict[tuple[str, str], str] = {}


def plain(kind: Any) -> Any:
    """The type without its limits."""
    if get_origin(kind) is Annotated:
        return kind.__origin__
    parts = get_args(kind)
    if any(get_origin(part) is Annotated for part in parts):
        united = plain(parts[0])
        for part in parts[1:]:
            united = united | plain(part)
        return united
    return kind


def take_limits(app: Sphinx, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """Take the limits out of the types of a dataclass before its fields are shown."""
    if not is_dataclass(obj):
        return
    kinds = get_type_hints(obj, include_extras=True)
    for field in obj.__annotations__:
        if limits := limits_of(kinds[field]):
            LIMITS[obj.__name__, field] = limits
            obj.__annotations__[field] = plain(kinds[field])


def hide_settings(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, arguments: str | None, returned: str | None
) -> tuple[str, str] | None:
    """Leave out the arguments of settings, which are the attributes that follow."""
    return ("", "") if isinstance(obj, type) and issubclass(obj, ReplaySettings) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", show_as_it_stands, priority=100)
    app.connect("autodoc-process-docstring", finish_attributes, priority=900)
    app.connect("autodoc-process-bases", take_limits)
    app.connect("autodoc-process-signature", hide_settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
