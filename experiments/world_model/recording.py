"""Video of the landers and the actions that were taken. It is recorded once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from gymnasium.envs.box2d.lunar_lander import LunarLander, heuristic
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from envs import get_tasks, make_task_env
from envs.lunar_lander import TaskEnv
from experiments.program.flags import UsageError
from experiments.program.terminal import progress as progress_bar
from mtrl import checkpoint
from mtrl.files import one_line

KIND = "video"
RECORDINGS = "recordings"  # the folder of recordings in a folder of results
POOL = 10  # a pixel of the video is the mean of 10 x 10 pixels of the game
HEIGHT, WIDTH, CHANNELS = 400 // POOL, 600 // POOL, 3
ACTIONS = 4
SHORTEST = 12  # frames of an episode at least, unless windows are shorter; shorter ones are left out
LONGEST = 80  # frames of an episode at most, because a lander that keeps hovering shows nothing new
HELD_OUT_EVERY = 5  # every fifth episode of a task is held out from training
CARELESSNESS = (0.1, 0.3, 0.6, 1.0)  # shares of random actions, one episode each in turn: from good landings to falls
PARTICLE_AGE = 0.15  # the game subtracts this from a particle's life each time it draws the particle


@dataclass(frozen=True)
class VideoSettings:
    """The settings of a video. The same settings give the same video."""

    tasks: tuple[str, ...]
    frames: int  # number of frames over all tasks
    frame_skip: int  # environment steps from one frame to the next, all with the frame's action
    shortest: int  # the least number of frames of an episode; shorter episodes are left out
    seed: int

    @classmethod
    def of(cls, tasks: tuple[str, ...], frames: int, frame_skip: int, window: int, seed: int) -> Self:
        """The settings of a video from which windows of `window` frames are taken."""
        return cls(tasks, frames, frame_skip, min(window, SHORTEST), seed)

    @property
    def file_name(self) -> str:
        """The name of the recording's file."""
        tasks = "-".join(self.tasks)
        return f"{tasks}_{self.frames}x{self.frame_skip}_episodes_from_{self.shortest}_seed_{self.seed}.zip"


@dataclass(frozen=True)
class Video:
    """N frames of E episodes, one episode after the other.

    Attributes:
        frames: (N, H, W, C), uint8.
        actions: the action after each frame, (N,), uint8. At the last frame of an episode it has no meaning.
        starts: the index of each episode's first frame, (E,), int64.
        episode_tasks: the index of each episode's task, (E,), int64.
        settings: the settings that the video was recorded with.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.uint8]
    starts: NDArray[np.int64]
    episode_tasks: NDArray[np.int64]
    settings: VideoSettings

    def __post_init__(self) -> None:
        """Check that the arrays fit each other.

        Raises:
            ValueError: they do not fit.
        """
        frames, episodes = len(self.frames), len(self.starts)
        expected: list[tuple[NDArray[Any], type, tuple[int, ...]]] = [
            (self.frames, np.uint8, (frames, HEIGHT, WIDTH, CHANNELS)),
            (self.actions, np.uint8, (frames,)),
            (self.starts, np.int64, (episodes,)),
            (self.episode_tasks, np.int64, (episodes,)),
        ]
        if any(array.dtype != dtype or array.shape != shape for array, dtype, shape in expected):
            raise ValueError("its arrays do not fit each other")
        bounds = np.append(self.starts, len(self.frames))
        if not len(self.starts) or bounds[0] != 0 or (np.diff(bounds) < 1).any():
            raise ValueError("its episodes do not follow each other")
        if self.actions.max() >= ACTIONS or not np.isin(self.episode_tasks, range(len(self.settings.tasks))).all():
            raise ValueError("an action or task is out of range")

    def episodes(self, held_out: bool | None) -> list[tuple[int, slice]]:
        """The task and the frames of each training episode, of each held-out episode, or of every episode (None)."""
        ends = np.append(self.starts[1:], len(self.frames))
        found, counts = [], [0] * len(self.settings.tasks)
        for task, start, end in zip(self.episode_tasks.tolist(), self.starts.tolist(), ends.tolist(), strict=True):
            counts[task] += 1
            if held_out is None or (counts[task] % HELD_OUT_EVERY == 0) == held_out:
                found.append((task, slice(start, end)))
        return found

    def windows(self, length: int, held_out: bool) -> NDArray[np.int64]:
        """The indices (P,) of all frames from which on an episode has at least `length` frames.

        Raises:
            UsageError: no episode has that many frames.
        """
        spans = [range(part.start, part.stop - length + 1) for _, part in self.episodes(held_out)]
        starts = np.array([start for span in spans for start in span], np.int64)
        if not len(starts):
            which = "held-out" if held_out else "training"
            raise UsageError(f"no {which} episode has {length} frames; record more with --frames")
        return starts

    def sequences(self, starts: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
        """Frames (B, T, C, H, W) from 0 to 1 and one-hot actions (B, T, 4) of sequences that begin at `starts` (B,)."""
        index = starts[:, None] + np.arange(length)  # (B, T)
        frames = torch.from_numpy(self.frames[index]).movedim(-1, 2).float().div_(255)
        actions = torch.nn.functional.one_hot(torch.from_numpy(self.actions[index]).long(), ACTIONS).float()
        return frames, actions

    def mean_frame(self) -> Tensor:
        """The mean of the training frames, (C, H, W), from 0 to 1."""
        parts = [self.frames[part] for _, part in self.episodes(held_out=False)]
        mean = sum(part.sum(0, dtype=np.float64) for part in parts) / sum(map(len, parts))
        return torch.from_numpy(mean / 255).movedim(-1, 0).float()


def load_or_record(
    folder: Path, settings: VideoSettings, progress: Callable[[int], None] = lambda frames: None
) -> Video:
    """Read the recording with these settings from `folder`, or record it if there is none.

    Args:
        folder: the folder of recordings.
        settings: the settings of the video.
        progress: a function that is called with the number of frames of each new episode. Default: one that does
            nothing.

    Raises:
        UsageError: the file is damaged or holds something else. It is not changed.
    """
    path = folder / settings.file_name
    if path.exists():
        return read(path, settings)
    recording = record(settings, progress)
    state = {name: getattr(recording, name) for name in ("frames", "actions", "starts", "episode_tasks")}
    checkpoint.save(path, {"kind": KIND, "settings": asdict(settings), **state})
    return recording


def load_with_progress(
    folder: Path, settings: VideoSettings, quiet: bool, answer: Callable[[], None] = lambda: None
) -> Video:
    """`load_or_record` with a progress bar while it records.

    Args:
        folder: the folder of recordings.
        settings: the settings of the video.
        quiet: whether to show no bar.
        answer: a function that is called after each new episode. Default: one that does nothing.

    Raises:
        UsageError: see `load_or_record`.
    """
    with progress_bar(quiet) as bar:
        row = bar.add_task("recording", total=settings.frames, visible=False)

        def advance(frames: int) -> None:
            bar.update(row, advance=frames, visible=True)
            answer()

        return load_or_record(folder, settings, advance)


def read(path: Path, settings: VideoSettings) -> Video:
    """Read the recording in `path`.

    Raises:
        UsageError: it has other settings, or is damaged.
    """
    try:
        state = checkpoint.load(path)
        if state.pop("kind", None) != KIND or state.pop("settings", None) != asdict(settings):
            raise ValueError("it is no recording of these settings")
        return Video(**state, settings=settings)
    except (ValueError, TypeError, AttributeError) as error:
        problem = one_line(error)
        raise UsageError(f"cannot use recording '{path}': {problem}; delete it to record anew") from None


def record(settings: VideoSettings, progress: Callable[[int], None] = lambda frames: None) -> Video:
    """Record episodes of one task after the other, each for its share of the frames. See `load_or_record`."""
    frames: list[NDArray[np.uint8]] = []
    actions: list[int] = []
    starts, episode_tasks = [], []
    tasks = get_tasks(settings.tasks)
    for index, task in enumerate(tasks):
        env = make_task_env(task, render_mode="rgb_array")
        # The seeds of a task do not depend on how many episodes the other tasks have.
        rng = np.random.default_rng((settings.seed, index))
        last = settings.frames * (index + 1) // len(tasks)
        try:
            for number in range(settings.frames):  # the loop breaks long before its end
                if last - len(frames) < settings.shortest:
                    break
                carelessness = CARELESSNESS[number % len(CARELESSNESS)]
                episode = list(fly(env, rng, settings.frame_skip, carelessness, min(LONGEST, last - len(frames))))
                if len(episode) >= settings.shortest:
                    starts.append(len(frames))
                    episode_tasks.append(index)
                    frames += [moment.frame for moment in episode]
                    actions += [moment.action for moment in episode]
                    progress(len(episode))
        finally:
            env.close()
    return Video(np.stack(frames), np.array(actions, np.uint8), np.array(starts), np.array(episode_tasks), settings)


class Moment(NamedTuple):
    """A frame of a flight, and what is done after it."""

    frame: NDArray[np.uint8]  # (H, W, C)
    observation: NDArray[np.float32]  # (8,), of the game
    action: int


def fly(
    env: TaskEnv,
    rng: np.random.Generator,
    frame_skip: int,
    carelessness: float,
    longest: int,
    pilot: Callable[[NDArray[np.float32]], int] | None = None,
) -> Iterator[Moment]:
    """Yield the moments of an episode, `frame_skip` steps apart.

    In a share `carelessness` of the frames the action is random; otherwise the pilot chooses it.

    Args:
        env: the environment.
        rng: the source of the episode's seed and of random actions.
        frame_skip: environment steps from one frame to the next, all with the same action.
        carelessness: the share of random actions.
        longest: the largest number of frames.
        pilot: a function from an observation to an action. Default: Gymnasium's own pilot.
    """
    game = cast(LunarLander, env.unwrapped)
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    for _ in range(longest):
        advised: int = pilot(observation) if pilot else heuristic(game, observation)  # type: ignore[no-untyped-call]
        action = int(rng.integers(ACTIONS)) if rng.random() < carelessness else advised
        yield Moment(pooled(env.render()), observation, action)
        for step in range(frame_skip):
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return
            if step < frame_skip - 1:
                # Sparks age when they are drawn. Here they age as in a game that is drawn at every step.
                for particle in game.particles:
                    particle.ttl -= PARTICLE_AGE


def pooled(picture: Any) -> NDArray[np.uint8]:
    """Shrink the game's picture (400, 600, 3) to (40, 60, 3) by the mean over blocks of 10 x 10 pixels."""
    return np.asarray(Image.fromarray(picture).reduce(POOL))
