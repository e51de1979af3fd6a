"""Files of the repository as pages: their links lead where they lead in the repository.

A page such as `docs/results.md` includes a file from elsewhere, here `results/README.md`. In it, a link to a file that
is a page itself becomes a link to that page, a link to another file offers that file, and a link to a folder becomes
plain text, because a folder cannot be opened from a web page. Pictures are left to the option `:relative-images:`.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
WHOLE = re.compile(r"^```\{include\} (\S+)\n:relative-images:\n```$", re.MULTILINE)


def pages() -> dict[Path, Path]:
    """The page of each file of the repository that some page includes as a whole."""
    found = {}
    for page in DOCS.rglob("*.md"):
        for target in WHOLE.findall(page.read_text(encoding="utf-8")):
            found[(page.parent / target).resolve()] = page
    return found


def with_links(text: str, file: Path, page: Path, known: dict[Path, Path]) -> str:
    """The Markdown `text` of `file`, with links as they must stand in `page`."""

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found.groups()
        path = (file.parent / target).resolve()
        if path.is_dir():
            return label
        path = known.get(path, path)
        return f"[{label}]({Path(os.path.relpath(path, page.parent)).as_posix()}{anchor or ''})"

    return LINK.sub(link, text)


def mend_links(app: Sphinx, path: Path, _: str, content: list[str]) -> None:
    """Rewrite the links of an included Markdown file."""
    file = (Path(app.srcdir) / path).resolve()
    if file.suffix == ".md":
        content[0] = with_links(content[0], file, Path(app.env.doc2path(app.env.docname)), pages())


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("include-read", mend_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
