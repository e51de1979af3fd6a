"""The tables of results/README.md are those of the runs that lie beside it.

A comment before a table says what it is, of which folder of runs and, after a colon, of which of them:
`<!-- ranking of grid/: rgb_blind shared_dqn_blind -->`; `*_blind` stands for all names that end so. After runs have
been added, write the tables anew and commit them with the runs:

    UPDATE_TABLES=1 python -m pytest -n0 tests/experiments/test_results_page.py
"""

import fnmatch
import os
import re
from pathlib import Path

from experiments.analysis.comparison import analyse
from experiments.analysis.replicates import as_methods
from experiments.analysis.runs import load_runs
from experiments.analysis.tables import comparison_table, ranking_table, returns_table

RESULTS = Path(__file__).parents[2] / "results"
PAGE = RESULTS / "README.md"
TABLES = {"returns": returns_table, "ranking": ranking_table, "comparison": comparison_table}
PLACE = re.compile(rf"(<!-- ({'|'.join(TABLES)}) of ([\w/]+)/(?:: ([^\n]+))? -->\n)(?:\|.*\n)+")


def of_the_runs(place: re.Match[str]) -> str:
    """The comment of a table, with the table that the runs make."""
    comment, kind, folder, names = place.groups()
    runs, broken = load_runs(RESULTS / folder)
    assert not broken
    patterns = (names or "*").split()
    assert all(fnmatch.filter(runs, pattern) for pattern in patterns), comment
    chosen = {name: of_name for name, of_name in runs.items() if any(fnmatch.fnmatch(name, p) for p in patterns)}
    return f"{comment}{TABLES[kind](analyse(list(as_methods(chosen).values()))).rstrip()}\n"


def test_every_table_is_that_of_its_runs():
    text = PAGE.read_text()
    assert len(PLACE.findall(text)) == text.count("-->\n|")
    written = PLACE.sub(of_the_runs, text)
    if os.environ.get("UPDATE_TABLES"):
        PAGE.write_text(written)
    else:
        assert text == written, f"see the top of {Path(__file__).name}"
