"""`evaluate --render` on a real X server, and where there is none."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pygame
import pytest
from PIL import Image, ImageGrab, features

from agents import MultiTaskDQN
from envs import make_task_vec_env
from experiments.program.flags import UsageError
from experiments.training.window import window

LANDER = (128, 102, 230)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Show one episode of an untrained agent, which crashes after some seventy steps."""
    results = tmp_path_factory.mktemp("results")
    env = make_task_vec_env(["Standard", "Windy"], envs_per_task=1, seed=0, variant="aware")
    agent = MultiTaskDQN("MlpPolicy", env, seed=0, device="cpu")
    (results / "shared_dqn" / "seed_0").mkdir(parents=True)
    agent.save(results / "shared_dqn" / "seed_0" / "model.zip")
    env.close()
    words = [sys.executable, "-m", "experiments.shared_dqn.evaluate", "--results-dir", str(results)]
    return [*words, "--task", "Windy", "--episodes", "1", "--render"]


def environment(**displays: str) -> dict[str, str]:
    names = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    return {name: value for name, value in os.environ.items() if name not in names} | displays


@pytest.fixture
def display() -> Iterator[str]:
    """An X server on a display that it chooses."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    read, write = os.pipe()
    # Without -noreset the server starts anew whenever its last client leaves, and refuses others until it has.
    words = ["Xvfb", "-displayfd", str(write), "-screen", "0", "800x600x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(words, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with open(read) as file:
        number = file.readline().strip()  # empty where the server can't start
    try:
        assert number
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()


def screenshot(display: str) -> Image.Image:
    return ImageGrab.grab(xdisplay=display)


def lander(picture: Image.Image) -> tuple[float, float] | None:
    """Where on the screen the craft is, by its colour; None where it is not."""
    rows, columns = np.nonzero((np.asarray(picture) == LANDER).all(-1))
    return (rows.mean(), columns.mean()) if len(rows) > 50 else None


@pytest.mark.skipif(not features.check("xcb"), reason="Pillow was built without XCB")
def test_the_window_shows_the_lander_on_its_way_down(command: list[str], display: str) -> None:
    assert not np.asarray(screenshot(display)).any()  # nothing but black before
    seen: list[tuple[float, float]] = []
    with subprocess.Popen(command, env=environment(DISPLAY=display), stdout=subprocess.PIPE, text=True) as show:
        while show.poll() is None:
            place = lander(screenshot(display))
            seen += [] if place is None else [place]
            time.sleep(0.1)
        assert show.stdout is not None
        assert "Windy" in show.stdout.read()
    assert show.returncode == 0
    assert len(seen) >= 2
    assert seen[-1][0] > seen[0][0]
    assert not np.asarray(screenshot(display)).any()  # the window is gone


def test_a_display_that_is_lost_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(UsageError, match=r"lost the window .*--video-dir"), window():
        raise pygame.error("the server is gone")


def test_the_window_shows_frames_and_closing_it_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with window() as show:
        for size in ((40, 60), (40, 60), (20, 30)):
            frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
            show(frame, 1000)
            shown = pygame.surfarray.array3d(pygame.display.get_surface())
            assert (shown == frame.swapaxes(0, 1)).all()
        pygame.event.post(pygame.event.Event(pygame.QUIT))
        with pytest.raises(KeyboardInterrupt):
            show(frame, 1000)
    assert not pygame.display.get_init()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a display has no name")
@pytest.mark.parametrize("displays", [{}, {"DISPLAY": ":987654"}])
def test_without_a_display_there_is_one_line_and_no_play(command: list[str], displays: dict[str, str]) -> None:
    done = subprocess.run(command, check=False, env=environment(**displays), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "cannot open a window" in done.stderr
    assert "DISPLAY" in done.stderr
    assert "--video-dir" in done.stderr
