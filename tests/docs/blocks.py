"""The blocks of programs and commands in the pages of the documentation.

A comment in the line before a block says what is done with it beside running it:

    <!-- not run: why it can't be -->
    <!-- saved as my_tasks.py -->
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block: its language, its text, the comment before it, and the line where it begins."""

    language: str
    text: str
    mark: str
    line: int

    @property
    def is_run(self) -> bool:
        return self.language in ("python", "console", "bash") and not self.mark.startswith("not run")

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """The commands of a block of the console, each with the lines that it is said to print.

        Where one line begins with a dollar, all commands do, and the other lines are printed.
        """
        lines = self.text.replace("\\\n", " ").splitlines()
        prompts = any(line.startswith("$ ") for line in lines)
        command, printed = "", list[str]()
        for line in lines:
            if line.startswith("$ ") or not prompts:
                if command:
                    yield command, printed
                command, printed = line.removeprefix("$ "), []
            else:
                printed.append(line)
        if command:
            yield command, printed


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[2], found[3], found[1] or "", text.count("\n", 0, found.start()) + 1)
        for found in BLOCK.finditer(text)
    ]
