"""Films: captions, grids, and mp4 files that are whole or not there."""

import gc
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from agents import MultiTaskDQN
from envs import make_task_vec_env
from experiments.program.flags import UsageError
from experiments.shared_dqn import evaluate
from experiments.training.animation import EDGE, FRAME_SECONDS, HOLD_SECONDS, animate
from experiments.training.evaluation import FINAL_SEED, moments
from experiments.training.filming import (
    COLUMNS,
    GAP,
    GREEN,
    RED,
    Frame,
    captioned,
    film,
    side_by_side,
    with_gust,
)

PAUSE = 50  # frames: one second of LunarLander
TASKS = ("Standard", "Heavy")
SIZE = (400, 600, 3)


def noise(seed: int = 0, shape: tuple[int, ...] = SIZE) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def count(path: Path) -> int:
    return int(imageio_ffmpeg.count_frames_and_secs(path)[0])


def frames_of(path: Path, *indices: int) -> list[NDArray[np.int64]]:
    """Frames of a film, by index."""
    wanted = sorted(set(indices))
    chosen = "+".join(rf"eq(n\,{index})" for index in wanted)
    words = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-vf", f"select={chosen}"]
    words += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(words, check=True, capture_output=True).stdout
    with imageio.get_reader(path) as reader:
        width, height = reader.get_meta_data()["size"]
    frames = np.frombuffer(raw, np.uint8).reshape(len(wanted), height, width, 3).astype(int)
    return [frames[wanted.index(index)] for index in indices]


# ---------------------------------------------------------------------------------------------------------- frames


def test_a_caption_stands_beneath_the_frame_and_hides_nothing() -> None:
    frame = noise()
    before = frame.copy()
    one, two = captioned(frame, ["Windy", "step 1"]), captioned(frame, ["Windy", "step 2"])
    assert (frame == before).all()
    for shown in (one, two):
        assert (shown[:400] == frame).all()
        assert shown.shape[0] % 2 == 0
        assert shown.shape[0] > 400
    assert (one[:, :300] == two[:, :300]).all()  # one text stands still while the other changes
    assert (one != two).any()


def test_a_verdict_stands_at_the_right_in_its_colour() -> None:
    frame = noise()
    silent, landed, crashed = (
        captioned(frame, ["step 1"], "Windy: gravity 10", word) for word in ("", "landed", "crashed")
    )
    assert (landed[:, :400] == silent[:, :400]).all()
    for shown, colour in ((landed, GREEN), (crashed, RED)):
        assert (shown[400:, 450:] == colour).all(-1).sum() > 20
    long = captioned(frame, ["step 1"], "Windy" * 40, "landed")
    assert (long[:, 520:] == landed[:, 520:]).all()  # a long title leaves the verdict its room


def test_a_text_without_room_is_shortened() -> None:
    frame = np.zeros(SIZE, np.uint8)
    crowded = captioned(frame, ["Standard" * 20, "step 1"])
    assert (crowded[:, 300:] == captioned(frame, ["", "step 1"])[:, 300:]).all()
    assert (crowded != captioned(frame, ["", "step 1"])).any()


@pytest.mark.parametrize("gust", [-1.0, -0.3, 0.05, 1.0])
def test_the_arrow_of_a_gust_points_where_it_pushes(gust: float) -> None:
    frame = np.zeros(SIZE, np.uint8)
    columns = np.nonzero((with_gust(frame, gust) != frame).any((0, 2)))[0] - 120
    assert frame.max() == 0
    ahead, behind = (columns.max(), -columns.min()) if gust > 0 else (-columns.min(), columns.max())
    assert ahead > behind
    assert abs(ahead - abs(gust) * 100) < 12


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_a_grid_holds_every_frame_and_has_even_sides(count: int) -> None:
    height, width = 40, 60
    frames = [noise(seed, (height, width, 3)) for seed in range(count)]
    grid = side_by_side(frames)
    assert grid.shape[0] % 2 == grid.shape[1] % 2 == 0
    for index, frame in enumerate(frames):
        top, left = index // COLUMNS * (height + GAP), index % COLUMNS * (width + GAP)
        assert (grid[top : top + height, left : left + width] == frame).all()
    held = np.concatenate(frames).size
    assert (grid == 128).sum() >= grid.size - held


# ----------------------------------------------------------------------------------------------------------- files


def test_a_film_has_its_frames_in_order_at_its_speed(tmp_path: Path) -> None:
    colours = [(220, 30, 30), (30, 200, 30), (30, 30, 220)] * 4
    with film(tmp_path / "a.mp4", fps=50) as add:
        for colour in colours:
            add(np.full(SIZE, colour, np.uint8))
        assert not (tmp_path / "a.mp4").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    with imageio.get_reader(tmp_path / "a.mp4") as reader:
        assert reader.get_meta_data()["size"] == (600, 400)
        assert reader.get_meta_data()["fps"] == 50
    assert count(tmp_path / "a.mp4") == len(colours)
    for frame, colour in zip(frames_of(tmp_path / "a.mp4", *range(len(colours))), colours, strict=True):
        assert np.abs(frame.mean((0, 1)) - colour).max() < 20


def test_a_film_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the one before")

    def filming() -> None:
        with film(path, fps=50) as add:
            add(noise())
            raise RuntimeError("the environment failed")

    with pytest.raises(RuntimeError, match="the environment failed"):
        filming()
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="the encoder's stand-in is a shell script")
@pytest.mark.parametrize("kills", ["head -c 1000000 >/dev/null", "cat >/dev/null", "exit 1"])
def test_an_encoder_that_gives_up_is_one_line_and_leaves_no_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: str
) -> None:
    script = tmp_path / "ffmpeg"
    # It answers what it is asked for before the film, but encodes nothing.
    answer = "Encoders: ------\\n V..... libx264 H.264"
    script.write_text(f"#!/bin/sh\ncase \"$*\" in *rawvideo*) {kills};; *) printf '{answer}'; exit 1;; esac\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))

    def filming() -> None:
        with film(tmp_path / "a.mp4", fps=50) as add:
            for seed in range(5):
                add(noise(seed))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # imageio_ffmpeg leaves a pipe to a dead encoder open
        with pytest.raises(UsageError, match=r"cannot write '.*a\.mp4': the encoder gave up") as raised:
            filming()
        message = str(raised.value)
        del raised
        gc.collect()
    assert len(message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [script]


# --------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained agent in the place of a run; its landers crash after some seventy steps."""
    folder = tmp_path_factory.mktemp("results")
    env = make_task_vec_env(TASKS, envs_per_task=1, seed=0, variant="aware")
    agent = MultiTaskDQN("MlpPolicy", env, seed=0, device="cpu")
    (folder / "shared_dqn" / "seed_0").mkdir(parents=True)
    agent.save(folder / "shared_dqn" / "seed_0" / "model.zip")
    env.close()
    return folder


@pytest.fixture(scope="module")
def lengths(results: Path) -> dict[str, list[int]]:
    """Steps of each task's first two episodes."""
    agent = MultiTaskDQN.load(results / "shared_dqn" / "seed_0" / "model.zip", device="cpu")
    counted: dict[str, list[int]] = {}
    for task in TASKS:
        episodes = [moment.episode for moment in moments(agent, task, 2, FINAL_SEED)]
        counted[task] = [episodes.count(0), episodes.count(1)]
    return counted


def table(text: str) -> list[str]:
    return [line for line in text.splitlines() if any(task in line for task in TASKS)]


def test_films_have_every_step_and_change_no_return(
    results: Path, lengths: dict[str, list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--results-dir", str(results), "--episodes", "3"]
    assert evaluate.main(arguments) == 0
    unfilmed = table(capsys.readouterr().out)
    films = tmp_path / "films"
    assert evaluate.main([*arguments, "--video-dir", str(films), "--video-episodes", "2", "--grid"]) == 0
    printed = capsys.readouterr()
    assert table(printed.out) == unfilmed
    assert printed.err == ""  # no bar where stderr is no terminal
    assert {path.name for path in films.iterdir()} == {*(f"{task}.mp4" for task in TASKS), "grid.mp4"}
    for task in TASKS:
        assert count(films / f"{task}.mp4") == sum(lengths[task]) + 2 * PAUSE
    longest = [max(of_task[episode] for of_task in lengths.values()) for episode in (0, 1)]
    assert count(films / "grid.mp4") == sum(longest) + 2 * PAUSE
    # The task that is over first waits with its last frame until the episodes of all have ended.
    first = min(TASKS, key=lambda task: lengths[task][0])
    assert lengths[first][0] < longest[0]
    left = TASKS.index(first) * (600 + GAP)
    (alone,) = frames_of(films / f"{first}.mp4", lengths[first][0] - 1)
    held = (lengths[first][0] - 1, longest[0] - 1, longest[0] + PAUSE - 1)
    *waiting, later = frames_of(films / "grid.mp4", *held, longest[0] + PAUSE + 20)
    for frame in waiting:
        assert np.abs(frame[:, left : left + 600] - alone).mean() < 3
    assert np.abs(later[:, left : left + 600] - alone).mean() > 3


def test_a_single_task_is_a_grid_of_one(results: Path, tmp_path: Path) -> None:
    arguments = ["--results-dir", str(results), "--episodes", "1", "--task", "Heavy"]
    assert evaluate.main([*arguments, "--video-dir", str(tmp_path), "--grid"]) == 0
    assert (tmp_path / "grid.mp4").read_bytes() == (tmp_path / "Heavy.mp4").read_bytes()


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_a_moving_picture_shows_the_tasks_side_by_side_and_holds_the_end(ending: str, tmp_path: Path) -> None:
    colours = ((250, 20, 20), (20, 20, 250))
    lengths = (3, 5)
    episodes = [
        iter([np.full((40, 60, 3), np.array(colour) // (n + 1), np.uint8) for n in range(length)])
        for colour, length in zip(colours, lengths, strict=True)
    ]
    path = tmp_path / f"a.{ending}"
    animate(episodes, path)
    with Image.open(path) as picture:
        assert picture.n_frames == max(lengths)
        shown = []
        for index in range(picture.n_frames):
            picture.seek(index)
            shown.append((np.asarray(picture.convert("RGB")).astype(int), picture.info["duration"]))
    for index, (frame, milliseconds) in enumerate(shown):
        for place, (colour, length) in enumerate(zip(colours, lengths, strict=True)):
            expected = np.array(colour) // (min(index, length - 1) + 1)
            left = EDGE + place * (60 + GAP)
            assert np.abs(frame[EDGE + 5 : EDGE + 35, left + 5 : left + 55].mean((0, 1)) - expected).max() < 16
        last = index == max(lengths) - 1
        assert milliseconds == round(1000 * (HOLD_SECONDS if last else FRAME_SECONDS))


def test_no_successful_episode_is_no_picture_and_another_ending_is_one_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--results-dir", str(results), "--episodes", "1", "--picture"]
    assert evaluate.main([*words, str(tmp_path / "a.gif")]) == 0
    assert capsys.readouterr().out.endswith("no successful episode to picture\n")
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*words, str(tmp_path / "a.jpg")])
    assert stop.value.code == 2
    assert "does not end in .png, or in .gif or .webp" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_grid_without_a_folder_is_one_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--results-dir", str(results), "--grid"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "experiments.shared_dqn.evaluate: grid needs video_dir: the folder for its film\n"
    )


def test_a_folder_in_the_grids_place_is_found_before_play(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.mp4").mkdir()
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--results-dir", str(results), "--video-dir", str(tmp_path), "--grid"])
    assert stop.value.code == 2
    assert "grid.mp4' is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["grid.mp4"]


@pytest.mark.skipif(os.name != "posix", reason="signals and terminals as POSIX has them")
def test_a_bar_on_a_terminal_and_ctrl_c_leaves_the_films_of_before(results: Path, tmp_path: Path) -> None:
    import pty  # noqa: PLC0415 - not everywhere

    (tmp_path / "Heavy.mp4").write_bytes(b"the one before")
    words = [sys.executable, "-m", "experiments.shared_dqn.evaluate", "--results-dir", str(results)]
    words += ["--episodes", "999", "--video-episodes", "999", "--video-dir", str(tmp_path), "--task", "Heavy"]
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as show:
        os.close(theirs)
        shown = b""
        while not re.search(rb"filming.*[1-9]\d*/999", shown):
            shown += os.read(ours, 10_000)
        show.send_signal(signal.SIGINT)
        try:
            while more := os.read(ours, 10_000):
                shown += more
        except OSError:  # Linux's way to say that nobody writes any more
            pass
    os.close(ours)
    assert show.returncode == 130
    assert b"interrupted" in shown
    assert b"Traceback" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["Heavy.mp4"]
    assert (tmp_path / "Heavy.mp4").read_bytes() == b"the one before"
