"""What programs show: on terminals of every width, with --quiet, and where nothing can be shown any more."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from experiments.program.terminal import console, show_table
from experiments.shared_dqn.train import main as train

ROOT = Path(__file__).parents[2]
SMALL = (
    *("--total-steps", "400", "--learning-starts", "60", "--envs-per-task", "1", "--batch-size", "8"),
    *("--buffer-size", "900", "--eval-interval", "0", "--final-episodes", "1", "--checkpoint-interval", "0"),
)
DONE = {"config.json", "metrics.jsonl", "model.zip", "evaluation.json"}


def program(*words: str, **options: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "experiments.shared_dqn.train", "--no-tensorboard", *SMALL, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    return subprocess.Popen(command, env=environment, **options)


def shown_on(columns: int, folder: Path) -> str:
    """What a training shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    shown = b""
    with program("--results-dir", "r", cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            while more := os.read(ours, 10_000):
                shown += more
        except OSError:  # the other end is closed
            pass
        os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


@pytest.mark.parametrize("columns", [20, 59])
def test_a_narrow_terminal_gets_plain_lines(columns: int, tmp_path: Path) -> None:
    shown = shown_on(columns, tmp_path)
    assert "\x1b" not in shown
    assert not set(shown) & set("━│┃")
    lines = shown.splitlines()
    assert any(re.fullmatch(r"Windy: return -?[\d.]+, sd [\d.]+, success \d+%", line) for line in lines), lines
    assert lines[-1].startswith("results in r/shared_dqn/seed_0; ")


def test_a_wide_terminal_gets_a_live_display(tmp_path: Path) -> None:
    shown = shown_on(60, tmp_path)
    assert "\x1b[" in shown
    assert "━" in shown


def test_quiet_leaves_one_line_that_says_where_the_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(["--quiet", "--no-tensorboard", *SMALL, "--results-dir", "r"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    (line,) = printed.out.splitlines()
    assert line.startswith("results in r/shared_dqn/seed_0; ")


def test_nothing_in_a_name_is_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(["--no-tensorboard", *SMALL, "--results-dir", "a[/b]:smile:"]) == 0
    assert "results in a[/b]:smile:/shared_dqn/seed_0" in capsys.readouterr().out
    there = console()
    table = Table("task", "return", title="[bold]x[/bold]")
    table.add_row("[red]", "1")
    show_table(table, there)
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "[bold]x[/bold]" in out


@pytest.mark.parametrize("where", ["a full disk", "closed", "a reader that is gone", "a lost terminal"])
def test_what_cannot_be_shown_ends_nothing(where: str, tmp_path: Path) -> None:
    words = ("--results-dir", str(tmp_path))
    if where == "a full disk":
        with open("/dev/full", "wb") as full:
            process = program(*words, stdout=full, stderr=full)
    elif where == "closed":
        process = program(*words, preexec_fn=lambda: [os.close(n) for n in (0, 1, 2)])  # type: ignore[func-returns-value]
    elif where == "a reader that is gone":
        reader, writer = os.pipe()
        os.close(reader)
        process = program(*words, stdout=writer, stderr=writer)
        os.close(writer)
    else:
        ours, theirs = pty.openpty()
        process = program(*words, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.close(ours)
    assert process.wait() == 0
    assert {path.name for path in (tmp_path / "shared_dqn" / "seed_0").iterdir()} == DONE


def test_a_closed_terminal_stops_a_training_as_ctrl_c_does(tmp_path: Path) -> None:
    words = ("--total-steps", "1000000", "--checkpoint-interval", "0.05", "--results-dir", str(tmp_path))
    process = program(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    folder = tmp_path / "shared_dqn" / "seed_0"
    while not (folder / "checkpoint.zip").exists():
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGHUP
    assert b"stopped by SIGHUP; the same command continues from step" in err
