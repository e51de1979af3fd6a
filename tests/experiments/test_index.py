"""`python -m experiments` lists every program."""

import re
import subprocess
import sys
from pathlib import Path

from experiments.methods import METHODS

ROOT = Path(__file__).parents[2]


def test_the_index_lists_every_program_that_a_user_starts() -> None:
    words = [sys.executable, "-m", "experiments"]
    shown = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    listed = dict(re.findall(r"^  (\S+) +(.+)$", shown, re.MULTILINE))
    there = set()
    for folder in ("experiments", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if 'if __name__ == "__main__":' in path.read_text():
                there.add(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    methods = {f"experiments.{name}.{program}" for name in METHODS for program in ("train", "evaluate")}
    assert methods <= there
    others = there - methods - {"experiments", "experiments.sweep.child"}
    assert set(listed) == others | {f"experiments.{name}" for name in METHODS}
