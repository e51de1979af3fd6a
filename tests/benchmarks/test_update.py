import json
from pathlib import Path

import pytest

from benchmarks.update import main


@pytest.mark.parametrize(
    ("algorithm", "first", "others"),
    [
        ("dqn", "plain", {"equal", "gradnorm", "aim_every_step"}),
        ("sac", "sb3_sac", {"equal", "gradnorm_critics", "torchjd_pcgrad"}),
    ],
)
def test_every_update_is_timed_relative_to_the_first(
    algorithm: str, first: str, others: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--seconds", "0.1", "--rounds", "1", "--batch-size", "4", "--json", str(file)]
    assert main(["--algorithm", algorithm, *arguments]) == 0
    figures = json.loads(file.read_text())
    ratios = figures[f"ratio_to_{first}"]
    assert ratios.keys() == figures["seconds"].keys() > others
    assert ratios[first] == 1
    assert all(ratio > 0 for ratio in ratios.values())
    shown = capsys.readouterr().out
    assert all(name in shown for name in ratios)
    assert ("floor_seconds" in figures) == (algorithm == "dqn")
