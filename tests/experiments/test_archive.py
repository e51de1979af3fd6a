"""Small copies of runs: within their size, with every evaluation, and with the same analysis as the originals."""

import json
import shutil
from pathlib import Path

import pytest

from experiments.analysis.archive import thinned
from experiments.analyze_results import main as analyze
from experiments.archive import main
from tests.experiments.test_methods import fails

REFERENCE = Path(__file__).parents[2] / "results/reference"


@pytest.fixture
def runs(tmp_path):
    for name in ("rgb_blind", "shared_dqn_blind", "brc"):
        shutil.copytree(REFERENCE / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_copies_are_small_and_analysed_alike(runs, tmp_path, capsys):
    copies = tmp_path / "copies"
    assert main(["--results-dir", str(runs), "--output-dir", str(copies), "--largest", "40"]) == 0
    assert capsys.readouterr().out == f"7 runs in {copies}\n"
    for folder in copies.glob("*/seed_*"):
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 40_000
        for name in ("config.json", "evaluation.json"):
            assert (folder / name).read_bytes() == (runs / folder.relative_to(copies) / name).read_bytes()
        whole, part = (
            [
                json.loads(line)
                for line in (root / folder.relative_to(copies) / "metrics.jsonl").read_text().splitlines()
            ]
            for root in (runs, copies)
        )
        evaluations = [line["env_step"] for line in whole if "eval/mean_return" in line]
        assert [line["env_step"] for line in part if "eval/mean_return" in line] == evaluations
        assert part[-1]["env_step"] == whole[-1]["env_step"]
    for root in (runs, copies):
        assert analyze(["--results-dir", str(root), "--output-dir", str(tmp_path / f"of_{root.name}")]) == 0
    tables = [(tmp_path / f"of_{root.name}/table.csv").read_text().splitlines() for root in (runs, copies)]
    measured = [[line for line in table if "steps per s" not in line and "steps to" not in line] for table in tables]
    assert measured[0] == measured[1]
    assert len(measured[0]) > 20


def test_a_second_copy_replaces_the_first_and_one_of_other_settings_does_not(runs, tmp_path, capsys):
    copies = tmp_path / "copies"
    words = ["--results-dir", runs, "--output-dir", copies]
    for _ in range(2):
        assert main([str(word) for word in words]) == 0
    capsys.readouterr()
    config = copies / "brc/seed_0/config.json"
    content = json.loads(config.read_text())
    content["settings"]["gamma"] = 0.5
    config.write_text(json.dumps(content))
    assert "holds a run with other settings (gamma)" in fails(main, words, capsys)


def test_without_runs_nothing_is_made(tmp_path, capsys):
    line = fails(main, ["--results-dir", tmp_path, "--output-dir", tmp_path / "copies"], capsys)
    assert "there are no finished runs" in line
    assert not (tmp_path / "copies").exists()


@pytest.mark.parametrize("room", [0, 50, 400, 3_000, 10**6])
@pytest.mark.parametrize("number", [0, 1, 7, 60])
def test_lines_fit_the_room(room, number):
    lines = [
        {"env_step": 100 * i, "x": i / 7} | ({"eval/mean_return": i / 3} if i % 5 == 0 else {}) for i in range(number)
    ]
    kept = thinned(lines, room)
    assert sum(map(len, kept)) <= room
    steps = [json.loads(line)["env_step"] for line in kept]
    assert steps == sorted(set(steps))
    if room == 10**6:
        assert len(kept) == number
