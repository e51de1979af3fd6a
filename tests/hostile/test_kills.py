"""Every program that writes is killed at random file operations; the same command then ends as an undisturbed one.

Programs are children forked from this process, which has everything imported. An audit hook in the child counts what
it does to files in the folder of results, and kills it at the n-th of these operations.
(`tests/experiments/test_resume.py` does the same to trainings of agents, with more kills.)
"""

import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch._dynamo  # noqa: F401 - what optimizers import when they are made; so it need not be in every child

from agents import MultiTaskDQN
from tests.support import make_agent

REFERENCE = Path(__file__).parents[2] / "results/reference"
KILLS = {"world_model": 1}  # of each program; 2 of the others, which are quicker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork")

Words = Callable[[Path, Path], Sequence[str]]
PROGRAMS: dict[str, tuple[str, Words]] = {  # the module, and its words given the folders of input and of results
    "analyze_results": (
        "experiments.analyze_results",
        lambda given, out: ["--results-dir", f"{given}/runs", "--output-dir", f"{out}/analysis"],
    ),
    "compare_weights": (
        "experiments.compare_weights",
        lambda given, out: [
            *("--methods", "rgb_blind", "gradnorm_blind", "--results-dir", f"{given}/runs"),
            *("--output-dir", f"{out}/weights"),
        ],
    ),
    "archive": (
        "experiments.archive",
        lambda given, out: ["--results-dir", f"{given}/runs", "--output-dir", f"{out}/archive"],
    ),
    "evaluate": (
        "experiments.shared_dqn.evaluate",
        lambda given, out: [
            *("--results-dir", f"{given}/trained", "--episodes", "1", "--task", "Windy"),
            *("--video-dir", f"{out}/videos", "--video-episodes", "1"),
        ],
    ),
    "supervised.train": (
        "experiments.supervised.train",
        lambda given, out: [
            *("--quiet", "--epochs", "2", "--num-train", "40", "--num-val", "30", "--results-dir", f"{out}/runs")
        ],
    ),
    "supervised.compare": (
        "experiments.supervised.compare",
        lambda given, out: [
            *("--quick", "--quiet", "--seeds", "4", "--num-train", "40", "--num-val", "30", "--data", "synthetic"),
            *("--balancers", "equal", "rgb", "--output-dir", f"{out}/comparison"),
        ],
    ),
    "world_model": (
        "experiments.world_model.train",
        lambda given, out: [
            *("--quick", "--tasks", "Standard", "--quiet", "--results-dir", f"{out}/world_model"),
            *("--checkpoint-interval", "0.01", "--steps", "6", "--frames", "240"),
        ],
    ),
    "mixed_signals": (
        "experiments.studies.mixed_signals",
        lambda given, out: ["--quick", "--quiet", "--steps", "12", "--output-dir", f"{out}/study"],
    ),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs and a trained agent."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("rgb_blind", "gradnorm_blind"):
        shutil.copytree(REFERENCE / name / "seed_0", folder / "runs" / name / "seed_0")
    (folder / "trained/shared_dqn/seed_0").mkdir(parents=True)
    make_agent(MultiTaskDQN).save(folder / "trained/shared_dqn/seed_0/model.zip")
    return folder


def in_child(module: str, words: Sequence[str], root: Path, kill_at: int = 0, count: Path | None = None) -> int:
    """Run a program in a fork, and return its exit status, minus n if signal n killed it.

    Args:
        module: the program.
        words: its command line.
        root: the folder whose file operations are counted.
        kill_at: the operation at which it is killed; 0 for none.
        count: where the number of operations goes when the program has ended.
    """
    main = importlib.import_module(module).main
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: those of the test runner only wait
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status, done = 99, 0
    try:
        log = os.open(root.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal done
            changes = event in CHANGES or (event == "open" and arguments[2] & WRITING)
            if changes and isinstance(arguments[0], str | bytes) and os.fsdecode(arguments[0]).startswith(str(root)):
                done += 1
                if done == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        status = main(list(words))
        if count is not None:
            count.write_text(str(done))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def contents(root: Path) -> dict[str, bytes]:
    """The files below a folder, without what depends on the clock."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_dir() or path.name == ".lock":
            continue
        content = path.read_bytes()
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            untimed = [{key: value for key, value in line.items() if not key.startswith("time")} for line in lines]
            content = json.dumps(untimed).encode()
        elif path.suffix in (".mp4", ".log", ".png"):  # an encoder's file, lines with times, pictures of times
            content = b""
        elif path.suffix == ".svg":
            # Matplotlib names a clip by the digits of its place, and the layout's solver does not fix the last of them.
            content = re.sub(rb"\bp[0-9a-f]{10}\b", b"clip", content)
        elif path.name in ("evaluation.json", "results.json"):
            parsed = json.loads(content)
            content = json.dumps({key: parsed[key] for key in parsed if "seconds" not in key}).encode()
        found[str(path.relative_to(root))] = content.replace(bytes(root), b"")
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_killed_at_random_file_operations_it_ends_as_if_it_had_not_been(
    program: str, given: Path, tmp_path: Path
) -> None:
    module, words = PROGRAMS[program]
    whole, count = tmp_path / "whole", tmp_path / "count"
    whole.mkdir()
    assert in_child(module, words(given, whole), whole, count=count) == 0, whole.with_suffix(".log").read_text()
    operations = int(count.read_text())
    assert operations > 0
    expected = contents(whole)
    draws = random.Random(program)
    for number in sorted(draws.sample(range(1, operations + 1), min(KILLS.get(program, 2), operations))):
        root = tmp_path / f"killed_at_{number}"
        root.mkdir()
        log = root.with_suffix(".log")
        assert in_child(module, words(given, root), root, kill_at=number) == -signal.SIGKILL, log.read_text()
        status = in_child(module, words(given, root), root)
        said = log.read_text()
        assert status == 0 or (status == 2 and "finished" in said), (number, said)
        assert "Traceback" not in said
        after = contents(root)
        assert after.keys() == expected.keys(), (number, said)
        for name, content in expected.items():
            assert after[name] == content, (number, name)
