"""`python -m experiments`: a list of the programs, by what they are for."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from experiments.methods import METHODS
from experiments.program.flags import main_guard

ROOT = Path(__file__).parents[1]
HEADER = "`python -m "
HIDDEN = ("experiments.sweep.child",)  # other programs start it

INTRODUCTION = """\
usage: python -m NAME [FLAG ...], in the root of the repository; --help explains every flag.

Methods, each with NAME.train and NAME.evaluate:"""


def index() -> str:
    """The methods, and the other programs with the first line of their documentation."""
    methods = {f"experiments.{name}": method.summary for name, method in METHODS.items()}
    others = dict(sorted(_programs().items()))
    width = max(map(len, (*methods, *others)))
    shown = [[f"  {name:{width}}  {words}" for name, words in part.items()] for part in (methods, others)]
    return "\n".join([INTRODUCTION, *shown[0], "", "Other programs:", *shown[1]])


def _programs() -> dict[str, str]:
    """What every program beside those of the methods is for, by its name."""
    found = {}
    for folder in ("experiments", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if not text.startswith(f'"""{HEADER}') or path == Path(__file__):
                continue
            document = ast.get_docstring(ast.parse(text)) or ""
            words, _, summary = document.partition("\n")[0].removeprefix(HEADER).partition("`")
            name = words.partition(" ")[0]
            if (folder == "benchmarks" or name.split(".")[1] not in METHODS) and name not in HIDDEN:
                found[name] = summary.removeprefix(": ").removesuffix(".")
    return found


@main_guard("experiments")
def main() -> int:
    """Print the index."""
    print(index())
    return 0


if __name__ == "__main__":
    sys.exit(main())
