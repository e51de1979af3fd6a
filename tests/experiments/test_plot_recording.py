"""Figures of a recording: what they show, and what is said where there is nothing to show."""

import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from experiments.analysis.plots import recording as figures
from experiments.analysis.plots.recording import Recording
from experiments.plot_recording import main
from mtrl import AIM, EqualWeights, Recorder
from mtrl.balancers.base import Balancer
from mtrl.recorder import read_recording
from tests.support import fails

NAMES = {"losses.png", "weights.png", "cosines.png", "diagnostics.png"}


def record(path: Path, balancer: Balancer, num_tasks: int = 3, steps: int = 12) -> Path:
    """A recording of every update of a small model."""
    torch.manual_seed(0)
    encoder, x = torch.nn.Linear(5, 8), torch.randn(20, 5)
    heads = [torch.nn.Linear(8, 1) for _ in range(num_tasks)]
    optimizer = torch.optim.SGD([p for layer in (encoder, *heads) for p in layer.parameters()], 0.05)
    with Recorder(path, balancer, [f"task{i}" for i in range(num_tasks)], every=1):
        for _ in range(steps):
            optimizer.zero_grad()
            shared = torch.tanh(encoder(x))
            balancer.backward([(head(shared) - x[:, [i % 5]]).square().mean() for i, head in enumerate(heads)])
            optimizer.step()
    return path


def test_a_recording_becomes_four_pictures_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(tmp_path / "metrics.jsonl", AIM(num_tasks=3, guidance="none"))
    with path.open("a") as file:
        file.write('{"env_step": 13, "train/ta')  # it is still being written
    assert main([str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert all(name in printed.out for name in NAMES)
    assert {item.name for item in tmp_path.iterdir()} == {"metrics.jsonl", *NAMES}
    for name in NAMES:
        picture = imageio.imread(tmp_path / name)
        assert picture.shape[0] > 300
        assert picture.std() > 5
    assert main([str(path), "--output-dir", str(tmp_path / "deep" / "down")]) == 0
    for name in NAMES:
        assert (tmp_path / "deep" / "down" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_figures_show_what_was_recorded(tmp_path: Path) -> None:
    path = record(tmp_path / "metrics.jsonl", AIM(num_tasks=3, guidance="none"))
    lines = read_recording(path)
    recording = Recording.read(path)
    assert recording.tasks == ["task0", "task1", "task2"]
    assert recording.step_label == "updates"

    figure = figures.losses(recording)
    assert figure is not None
    assert "one run" in figure.get_suptitle()
    for task, drawn in zip(recording.tasks, figure.axes[0].lines, strict=True):
        assert drawn.get_label() == task
        assert list(drawn.get_xdata()) == list(range(1, 13))
        assert list(drawn.get_ydata()) == [line[f"train/{task}/loss"] for line in lines]

    figure = figures.cosines(recording)
    assert figure is not None
    curves, heat_map = figure.axes[:2]
    assert [line.get_label() for line in curves.lines[1:]] == ["task0, task1", "task0, task2", "task1, task2"]
    matrix = np.ma.filled(heat_map.images[0].get_array(), np.nan)
    mean = np.mean([line["balancer/cosine/task0_task2"] for line in lines])
    assert matrix[0, 2] == matrix[2, 0] == pytest.approx(mean)
    assert np.isnan(matrix.diagonal()).all()

    figure = figures.diagnostics(recording)
    assert figure is not None
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert set(panels) == {
        *("tau", "intervention", "magnitude", "progress", "alignment"),
        *("conflict share", "norm ratio", "magnitude similarity"),
    }
    assert len(panels["tau"].lines) == 6  # (a, b) is not (b, a)
    assert len(panels["magnitude similarity"].lines) == 3
    assert len(panels["alignment"].lines) == 3
    assert len(panels["norm ratio"].lines) == 1


def test_the_pairs_of_many_tasks_are_drawn_with_their_mean(tmp_path: Path) -> None:
    path = record(tmp_path / "metrics.jsonl", EqualWeights(), num_tasks=8, steps=3)
    figure = figures.cosines(Recording.read(path))
    assert figure is not None
    lines = figure.axes[0].lines[1:]
    assert len(lines) == 28 + 1
    values = [np.asarray(line.get_ydata()) for line in lines]
    np.testing.assert_allclose(values[-1], np.mean(values[:-1], 0))
    assert lines[-1].get_label() == "mean of 28"


def test_steps_of_a_training_run_are_those_of_its_environments(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"env_step": 1296, "train/updates": 0, "train/a/loss": 1.0}\n')
    recording = Recording.read(path)
    assert recording.step_label == "environment steps (all tasks)"


def test_a_figure_without_data_is_not_left_from_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"env_step": 1, "train/alone/loss": 2.5, "balancer/alone/weight": NaN}\n')
    for name in NAMES:
        (tmp_path / name).write_bytes(b"of an earlier recording")
    assert main([str(path)]) == 0
    assert {item.name for item in tmp_path.iterdir()} == {"metrics.jsonl", "losses.png"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "line 1: "),
        ('{"env_step": 1}\n{"a": 2}\n', "line 2 has no env_step: this is no recording"),
        ("", "nothing to draw"),
        ('{"env_step": 1, "time/fps": 3}\n', "nothing to draw"),
        (None, "No such file or directory"),
    ],
)
def test_other_files_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    line = fails(main, [str(tmp_path / "metrics.jsonl"), "--output-dir", str(tmp_path / "out")], capsys)
    assert message in line
    assert "metrics.jsonl" in line
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_in_the_way_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(tmp_path / "metrics.jsonl", EqualWeights(), steps=1)
    (tmp_path / "cosines.png").mkdir()
    assert "cosines.png' is a folder" in fails(main, [str(path)], capsys)
    assert "is a file; figures need a folder" in fails(main, [str(path), "--output-dir", str(path / "below")], capsys)
    assert "missing argument" in fails(main, [], capsys)
    assert {item.name for item in tmp_path.iterdir()} == {"metrics.jsonl", "cosines.png"}


def test_help_loads_nothing_heavy() -> None:
    check = (
        "import sys, experiments.plot_recording; sys.exit(not {'torch', 'matplotlib', 'scipy'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
