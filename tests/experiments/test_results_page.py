"""The tables of results/README.md are those of the runs that lie beside it.

After runs have been added, write the tables anew and commit them with the runs:

    UPDATE_TABLES=1 python -m pytest -n0 tests/experiments/test_results_page.py
"""

import os
import re
from pathlib import Path

import pytest

from experiments.analysis.comparison import analyse
from experiments.analysis.replicates import as_methods
from experiments.analysis.runs import load_runs
from experiments.analysis.tables import returns_table

RESULTS = Path(__file__).parents[2] / "results"
PAGE = RESULTS / "README.md"


@pytest.mark.parametrize("folder", ["reference", "grid"])
def test_a_table_is_that_of_its_runs(folder):
    runs, broken = load_runs(RESULTS / folder)
    assert runs
    assert not broken
    table = returns_table(analyse(list(as_methods(runs).values())))
    text = PAGE.read_text()
    (place,) = re.finditer(rf"(?<=<!-- returns of {folder}/ -->\n)(?:\|.*\n)+", text)
    if os.environ.get("UPDATE_TABLES"):
        PAGE.write_text(f"{text[: place.start()]}{table.rstrip()}\n{text[place.end() :]}")
        return
    assert place[0] == table.rstrip() + "\n", f"see the top of {Path(__file__).name}"
