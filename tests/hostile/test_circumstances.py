"""What happens around a program: it is stopped, killed, runs out of memory, has no streams, or odd paths."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.methods import METHODS
from experiments.program import run_folder
from experiments.program.command import run
from experiments.program.flags import UsageError
from experiments.program.run_folder import CHECKPOINT_FILE, RunFolder
from experiments.program.stopping import StoppedError, memory_problem
from experiments.supervised.train import main as supervised
from experiments.sweep import cluster
from experiments.training.config import TrainConfig
from mtrl.files import replacing
from mtrl.rl.watchdog import Watchdog, WatchdogError
from tests.experiments.test_methods import fails

ROOT = Path(__file__).parents[2]
SMALL = (
    *("--total-steps", "600", "--envs-per-task", "2", "--learning-starts", "100", "--buffer-size", "3000"),
    *("--final-episodes", "1", "--no-tensorboard"),
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and paths of Linux")


def folder_of(path: Path, **options: Any) -> RunFolder:
    return RunFolder(path, {"run": "r", "settings": {"seed": 0}}, kind="test", interval=1e-9, **options)


# ------------------------------------------------------------------------------------------------- stopped and killed


def test_time_in_which_the_process_is_stopped_is_not_blamed_on_an_environment() -> None:
    waker = [sys.executable, "-c", f"import os, time, signal; time.sleep(1); os.kill({os.getpid()}, signal.SIGCONT)"]
    with subprocess.Popen(waker), Watchdog(0.5):
        os.kill(os.getpid(), signal.SIGSTOP)  # for twice as long as the watchdog waits
        time.sleep(0.1)


def test_compiled_code_that_takes_too_long_is_noticed_when_it_returns() -> None:
    square = torch.rand(3000, 3000)
    with pytest.raises(WatchdogError), Watchdog(0.1):
        _ = square @ square


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    killed = (
        "import os, sys, signal; from pathlib import Path; from mtrl.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); print('there', flush=True); {}"
    )
    dead = subprocess.run(
        [sys.executable, "-c", killed.format("os.kill(os.getpid(), signal.SIGKILL)"), path], cwd=ROOT, check=False
    )
    assert dead.returncode == -signal.SIGKILL
    living = [sys.executable, "-c", killed.format("sys.stdin.read()"), str(path)]
    with subprocess.Popen(living, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        with replacing(path) as file:
            file.write(b"whole")
        assert path.read_bytes() == b"whole"
        assert len(list(tmp_path.glob(".*.tmp"))) == 1  # the living one's
        with replacing(tmp_path / "another.json") as file:
            file.write(b"1")
    assert other.returncode == 0
    assert path.read_bytes() == b"half"
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_very_end_neither_undoes_the_run_nor_leaves_its_checkpoints(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run_folder.write_json

    def write(path: Path, content: Any) -> None:
        original(path, content)
        if path.name == "evaluation.json":
            os.kill(os.getpid(), number)

    monkeypatch.setattr(run_folder, "write_json", write)
    with folder_of(tmp_path / "run") as folder:
        folder.begin()
        folder.checkpoint(lambda: {"steps": 1})
        folder.signals.answer_at_once()
        folder.finish({"mean": 1.0})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "evaluation.json"]


def test_before_the_very_end_a_signal_still_stops_the_run(tmp_path: Path) -> None:
    def train() -> None:
        with folder_of(tmp_path / "run") as folder:
            folder.begin()
            folder.signals.answer_at_once()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        train()


def test_checkpoints_that_a_kill_left_in_a_finished_run_are_removed(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with folder_of(place) as folder:
        folder.begin()
        folder.checkpoint(lambda: {"steps": 1})
        shutil.copy(place / CHECKPOINT_FILE, tmp_path)
        folder.finish({})
    shutil.copy(tmp_path / CHECKPOINT_FILE, place)
    with pytest.raises(UsageError, match="holds a finished run"):
        folder_of(place)
    assert not (place / CHECKPOINT_FILE).exists()


@pytest.mark.parametrize("begun", [True, False])
def test_a_record_that_is_a_link_is_refused_whether_or_not_the_run_continues(begun: bool, tmp_path: Path) -> None:
    place, victim = tmp_path / "run", tmp_path / "victim"
    victim.mkdir()
    place.mkdir()
    if begun:

        def interrupted() -> None:
            with folder_of(place) as folder:
                folder.begin()
                folder.checkpoint(lambda: {"steps": 1})

        interrupted()
    (place / "tensorboard").symlink_to(victim)
    with folder_of(place) as folder, pytest.raises(UsageError, match="tensorboard' is a symbolic link; remove it"):
        folder.begin(records=["tensorboard"])
    assert not list(victim.iterdir())


# ------------------------------------------------------------------------------------------------- memory, Ray, streams


def allocate_with_numpy() -> object:
    return np.empty(10**16)


def allocate_with_torch() -> object:
    return torch.empty(10**16)


def allocate_with_python() -> object:
    return bytearray(2**60)


@pytest.mark.parametrize("allocate", [allocate_with_numpy, allocate_with_torch, allocate_with_python])
def test_out_of_memory_is_one_line(allocate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main(config: TrainConfig) -> None:
        allocate()

    assert run(main, METHODS["rgb"].config_type, [], prog="program") == 1
    assert capsys.readouterr().err.startswith("program: out of memory")

    def train() -> None:
        with folder_of(tmp_path / "run") as folder:
            folder.begin()
            allocate()

    with pytest.raises(StoppedError, match=r"^out of memory.*; there is no checkpoint yet"):
        train()
    assert memory_problem(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(**options: Any) -> None:
        raise RuntimeError("The current node timed out during startup.\n" * 50)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(StoppedError, match=r"^Ray did not start on this machine \(RuntimeError: [^\n]*\)$"):
        cluster.cluster(None).__enter__()


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_run_without_standard_streams_ends_all_the_same(closed: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m experiments.shared_dqn.train {' '.join(SMALL)} --results-dir {tmp_path} {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "shared_dqn/seed_0/evaluation.json").read_text())["tasks"]


# ------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("place", ["evaluation.json/x.log", "config.json/deep/x.log", "a.b/x.log"])
def test_a_log_below_a_file_of_the_run_is_refused(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"logging: {{file: {place}}}")
    line = fails(supervised, ["--results-dir", tmp_path / "runs", "--config", config], capsys)
    assert "no dot in the names of its folders" in line
    assert not (tmp_path / "runs").exists()


def test_paths_that_are_no_utf_8_hold_runs_and_reports(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/r\xff")
    shutil.copytree(ROOT / "results/reference/rgb_blind", Path(odd) / "rgb_blind")
    words = [sys.executable, "-m", "experiments.analyze_results", "--html", "--results-dir", odd]
    done = subprocess.run([*words, "--output-dir", f"{odd}/out"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(odd, "out/report.html").stat().st_size > 1000
