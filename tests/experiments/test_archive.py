"""Small copies of runs: within their size, with every evaluation, and with the same analysis as the originals."""

import json
import shutil
import time
from pathlib import Path

import pytest

from agents import MultiTaskDQN
from experiments.analysis.archive import thinned
from experiments.analyze_results import main as analyze
from experiments.archive import main
from tests.experiments.test_methods import fails
from tests.support import make_agent

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
    assert "holds another run (gamma was 0.5 and is 0.99)" in fails(main, words, capsys)


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


# ------------------------------------------------------------------------------------------------- what a stranger does


def files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def rename(folder, run):
    config = json.loads((folder / "config.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation.pop("of_settings", None)
    (folder / "config.json").write_text(json.dumps({**config, "run": run}))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


@pytest.mark.parametrize("name", ["../../victim", "/tmp/victim", "a/b", "..", ".hidden", "a\\b"])
def test_a_run_that_names_another_place_is_skipped(name, runs, tmp_path, capsys):
    rename(runs / "brc/seed_0", name)
    outside = files(tmp_path)
    assert main(["--results-dir", str(runs), "--output-dir", str(tmp_path / "copies")]) == 0
    printed = capsys.readouterr()
    assert "is no name of a folder" in printed.err
    assert printed.out.startswith("6 runs")
    new = files(tmp_path).keys() - outside.keys()
    assert all(path.is_relative_to(tmp_path / "copies") for path in new)


def test_runs_are_never_replaced_by_copies(runs, tmp_path, capsys):
    before = files(runs)
    (tmp_path / "link").symlink_to(runs)
    for output in (runs, tmp_path / "link"):
        line = fails(main, ["--results-dir", runs, "--output-dir", output], capsys)
        assert "is the run itself" in line
    assert files(runs) == before


@pytest.mark.parametrize("there", ["model.zip", "checkpoint.zip", ".lock"])
def test_a_folder_that_holds_more_than_a_copy_is_left_alone(there, runs, tmp_path, capsys):
    copies = tmp_path / "copies"
    folder = shutil.copytree(runs / "brc/seed_0", copies / "brc/seed_0")
    (folder / there).write_text("precious")
    line = fails(main, ["--results-dir", runs, "--output-dir", copies], capsys)
    assert f"is no copy of a run: it holds '{there}'" in line
    assert list(copies.glob("*/*")) == [folder]


def test_another_run_with_the_same_settings_is_left_alone(runs, tmp_path, capsys):
    copies = tmp_path / "copies"
    folder = shutil.copytree(runs / "brc/seed_0", copies / "brc/seed_0")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "method": "mine"}))
    assert "holds another run (method was 'mine'" in fails(
        main, ["--results-dir", runs, "--output-dir", copies], capsys
    )


def test_links_in_the_output_are_not_followed(runs, tmp_path, capsys):
    (tmp_path / "victim").mkdir()
    (tmp_path / "copies/brc").mkdir(parents=True)
    (tmp_path / "copies/brc/seed_0").symlink_to(tmp_path / "victim")
    line = fails(main, ["--results-dir", runs, "--output-dir", tmp_path / "copies"], capsys)
    assert "is reached through a symbolic link" in line
    assert not list((tmp_path / "victim").iterdir())


def test_a_file_that_is_no_network_is_left_alone(runs, tmp_path, capsys):
    (runs / "brc/seed_0/model.zip").write_bytes(b"no model")
    words = ["--results-dir", runs, "--output-dir", tmp_path / "copies", "--models-dir", tmp_path / "models"]
    assert "model.zip" in fails(main, words, capsys)
    make_agent(MultiTaskDQN).save(runs / "brc/seed_0/model.zip")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/brc.safetensors").write_text("precious")
    assert "brc.safetensors" in fails(main, words, capsys)
    assert (tmp_path / "models/brc.safetensors").read_text() == "precious"
    (tmp_path / "models/brc.safetensors").unlink()
    assert main([str(word) for word in words]) == 0
    assert "1 networks" in capsys.readouterr().out


def test_many_lines_are_thinned_in_a_moment():
    for keys in ({"eval/a": 1.0}, {"a": 1.0}):
        lines = [{"env_step": float(i), **keys} for i in range(100_000)]
        begun = time.process_time()
        assert 0 < sum(map(len, thinned(lines, 50_000))) <= 50_000
        assert time.process_time() - begun < 30  # it was quadratic
