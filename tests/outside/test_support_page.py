"""Every row of docs/support.md names tests that exist."""

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
ROWS = [
    line
    for line in (ROOT / "docs" / "support.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| feature", "| ---"))
]


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_row_names_tests_that_exist() -> None:
    assert len(ROWS) > 50
    for row in ROWS:
        cell = row.rstrip(" |").rpartition("| ")[2]
        named = re.findall(r"`((?:[\w/]+/)?test_\w+\.py)?(?:::(test_\w+))?`", cell)
        assert named, row
        file = ""
        for in_file, name in named:
            file = in_file or file
            path = (ROOT if "/" in file else FOLDER) / file
            assert path.is_file(), row
            assert not name or name in functions_of(path), f"{name} of {row}"
