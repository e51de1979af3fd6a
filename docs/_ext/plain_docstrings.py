"""A Sphinx extension for docstrings that are written to be read as plain text.

The project's docstrings are not reStructuredText: formulas are indented blocks, `|g|` is a length, and code stands in
single backticks. This extension turns them into reStructuredText before napoleon reads their sections:

* an indented block after an empty line becomes a literal block, which keeps its lines;
* `code` in single backticks becomes a literal;
* the bars and stars of formulas in running text lose their special meaning, and so does the T of `num_tasks: T.`, which
  would begin an enumeration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
STRONG = re.compile(r"(\*\*\S(?:.*?\S)?\*\*|\*\w+\*)")
BOLD = re.compile(r"\*\*(?=\w)|(?<=\w)\*\*")  # around code, which reStructuredText cannot make bold
LETTER = re.compile(r"^(\s*\w+: )(?=[A-Za-z]\.(?: |$))")
INDENT = "    "


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    return list(_blocks(lines))


def _blocks(lines: list[str]) -> Iterator[str]:
    formula, before = False, ""
    for line in lines:
        indented = line.startswith(INDENT)
        if indented and not formula and before.strip() == "":
            formula = True
            yield ".. code-block:: text"
            yield ""
        elif line.strip() and not indented:
            formula = False
        yield line if formula else _inline(line)
        before = line


def _inline(line: str) -> str:
    bullet = re.match(r"\s*\* ", line)
    begin = bullet.group() if bullet else ""
    parts = CODE.split(line[len(begin) :])
    for place, part in enumerate(parts):
        if place % 2:
            parts[place] = f"``{part.strip('`')}``"
        else:
            parts[place] = "".join(
                piece if odd else re.sub(r"([|*])", r"\\\1", BOLD.sub("", piece))
                for odd, piece in ((index % 2, piece) for index, piece in enumerate(STRONG.split(part)))
            )
    return LETTER.sub(r"\1\\", begin + "".join(parts))


def _process(app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app: Any) -> dict[str, bool]:
    """Connect the extension, before napoleon, whose priority is 500."""
    app.add_css_file("formulas.css")
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
