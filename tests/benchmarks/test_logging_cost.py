import json
from pathlib import Path

import pytest

from benchmarks import logging_cost
from benchmarks.logging_cost import JSONL, NOTHING, TENSORBOARD, WANDB, main


def test_the_command_prints_and_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    path = tmp_path / "logging.json"
    assert main(["--seconds", "4", "--rounds", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "the default outputs take" in printed.out
    outputs = json.loads(path.read_text())["outputs"]
    assert list(outputs) == [NOTHING, JSONL, TENSORBOARD, WANDB]
    assert outputs[NOTHING] == {
        "lines": 0,
        "milliseconds_per_line": 0,
        "share": 0,
        "against_nothing": 0,
        "open_and_close_seconds": outputs[NOTHING]["open_and_close_seconds"],
    }
    for name in (JSONL, TENSORBOARD, WANDB):
        assert 0 <= outputs[name]["share"] < 1
        assert (outputs[name]["share"] > 0) == (outputs[name]["lines"] > 0)
    assert outputs[WANDB]["open_and_close_seconds"] > outputs[JSONL]["open_and_close_seconds"]


def test_without_wandb_its_row_is_left_out_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging_cost, "find_spec", lambda _: None)
    path = tmp_path / "logging.json"
    assert main(["--seconds", "0.1", "--rounds", "1", "--json", str(path)]) == 0
    assert WANDB not in json.loads(path.read_text())["outputs"]
    assert "W&B is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--seconds 0", "seconds is 0.0; it must be above 0 and finite"),
        ("--rounds 0", "rounds is 0; it must be at least 1"),
        ("--seed -1", "seed is -1; it must be at least 0"),
        ("--json /", "'/' is a folder; figures need a file"),
    ],
)
def test_bad_flags_get_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"benchmarks.logging_cost: {message}\n"
