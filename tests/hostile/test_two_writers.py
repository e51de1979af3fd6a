"""Two processes that want to write into one folder, and folders that are moved away while a program writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.analysis.runs import read_run
from experiments.program.flags import UsageError
from experiments.program.locking import locked
from experiments.program.run_folder import RunFolder
from experiments.program.stopping import StoppedError
from experiments.studies.command import writing
from experiments.supervised import comparison
from experiments.supervised.compare import main as compare
from experiments.sweep.grid import plan
from experiments.sweep.jobs import Job, State
from experiments.sweep.worker import Outcome

ROOT = Path(__file__).parents[2]


def folder_of(path: Path, steps: int, **options: Any) -> RunFolder:
    return RunFolder(path, {"run": "r", "settings": {"seed": 0, "steps": steps}}, kind="test", interval=1e-9, **options)


def everything(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


MOVED = r"run' has been moved or replaced since the run began; nothing more is written"


def test_a_run_whose_folder_was_moved_away_writes_nowhere(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with folder_of(place, 1) as first:
        first.begin()
        place.rename(tmp_path / "away")
        with pytest.raises(StoppedError, match=MOVED):
            first.checkpoint(lambda: {"steps": 1})
        assert not place.exists(), "a missing folder is not made again"
        with folder_of(place, 2) as second:
            second.begin()
            before = everything(tmp_path)
            for write in (lambda: first.checkpoint(lambda: {"steps": 1}), lambda: first.finish({}), first.begin):
                with pytest.raises(StoppedError, match=MOVED):
                    write()
            assert everything(tmp_path) == before
            with pytest.raises(UsageError, match="another process is training"), folder_of(place, 2):
                pass


def test_the_lock_of_a_folder_that_took_the_place_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    with locked(place):
        place.rename(tmp_path / "away")
        place.mkdir()
        (place / ".lock").touch()
    assert (place / ".lock").exists()


def train(results: Path, *words: str) -> "subprocess.Popen[str]":
    command = (sys.executable, "-m", "experiments.shared_dqn.train", "--quiet", "--no-tensorboard", "--seed", "0")
    small = ("--envs-per-task", "1", "--batch-size", "8", "--buffer-size", "900", "--learning-starts", "60")
    once = ("--final-episodes", "1", "--eval-interval", "0", "--results-dir", str(results))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen((*command, *small, *once, *words), stderr=subprocess.PIPE, text=True, env=environment)


def test_a_training_whose_folder_was_moved_ends_and_another_one_in_its_place_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "shared_dqn" / "seed_0"
    first = train(tmp_path, "--total-steps", "1000000", "--checkpoint-interval", "0.2", "--tensorboard")
    while not (folder / "checkpoint.zip").exists():
        assert first.poll() is None, first.communicate()
    folder.rename(tmp_path / "away")
    second = train(tmp_path, "--total-steps", "600", "--existing", "replace", "--tensorboard")
    assert second.wait() == 0, second.communicate()
    _, said = first.communicate()
    assert first.returncode == 1
    assert "has been moved or replaced since the run began" in said
    assert "Traceback" not in said
    assert len(list((folder / "tensorboard").iterdir())) == 1
    second.communicate()
    assert read_run(folder).settings["total_steps"] == 600
    assert "of_settings" in json.loads((folder / "evaluation.json").read_text())


def test_two_comparisons_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--balancers", "equal", "--seeds", "0", "--quick", "--quiet", "--output-dir", str(tmp_path)]
    with locked(tmp_path), pytest.raises(SystemExit) as stop:
        compare(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("another process is writing to") == 1
    assert not (tmp_path / comparison.RESULTS_FILE).exists()


def test_a_study_that_finds_its_folder_filled_when_it_ends(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="another process is writing"), writing(tmp_path, False):
        pass
    (tmp_path / "results.md").write_text("of another process")
    with pytest.raises(UsageError, match="is not empty"), writing(tmp_path, False):
        pass


def test_a_full_disk_at_the_end_of_a_study_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="No space left on device"), writing(tmp_path, False):
        raise OSError(28, "No space left on device")


def test_a_sweep_does_not_call_a_run_its_own_that_has_other_settings(tmp_path: Path) -> None:
    with train(tmp_path, "--total-steps", "900") as process:
        assert process.wait() == 0
    small = ["--envs-per-task", "1", "--batch-size", "8", "--buffer-size", "900", "--learning-starts", "60"]
    small += ["--no-tensorboard", "--final-episodes", "1", "--eval-interval", "0"]
    flags = [*small, "--total-steps", "600"]
    (ours,) = plan(["shared_dqn"], ["aware"], [0], tmp_path, flags, "sweep")
    job = Job(ours, State.WAITING)
    job.judge(Outcome(0, ""), retries=0)
    assert job.state is State.FAILED
    assert "total_steps was 900 and is 600" in job.problem
    (same,) = plan(["shared_dqn"], ["aware"], [0], tmp_path, [*small, "--total-steps", "900"], "sweep")
    job = Job(same, State.WAITING)
    job.judge(Outcome(-9, ""), retries=0)
    assert job.state is State.FINISHED
