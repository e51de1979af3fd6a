"""Greedy evaluation of a trained agent on fixed seeds."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from gymnasium.envs.box2d.lunar_lander import FPS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agents import MultiTaskDQN, load_agent
from envs import get_tasks, make_task_env
from experiments.analysis.runs import MODEL_FILE
from experiments.program.flags import UsageError
from experiments.training import window
from experiments.training.config import EvaluateConfig, run_dir, run_name
from experiments.training.filming import Frame, captioned, film, side_by_side

OnFrame = Callable[[int, Frame], None]

# Seeds of evaluation episodes. Training environments are seeded with 64-bit numbers out of a `SeedSequence`, so these
# small ones are not among them; the two kinds of evaluation differ so that curves do not foretell the final figure.
FINAL_SEED = 10_000
CURVE_SEED = 20_000

SUCCESS_RETURN = 200.0
"""A return from which Gymnasium counts LunarLander as solved."""

GRID_FILE = "grid.mp4"
PAUSE = FPS
"""Frames for which a film rests on an episode's end: a second."""


@dataclass(frozen=True)
class TaskResult:
    """Returns of one task's episodes and what they come to."""

    returns: list[float]
    mean: float
    standard_deviation: float
    success_rate: float

    @classmethod
    def of(cls, returns: Sequence[float]) -> TaskResult:
        """Mean, sample standard deviation (0 for one episode) and share of returns of at least 200."""
        values = np.asarray(returns)
        deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return cls(list(returns), float(values.mean()), deviation, float((values >= SUCCESS_RETURN).mean()))


@dataclass(frozen=True)
class Evaluation:
    """Results by task, their mean over tasks, and the worst task."""

    tasks: dict[str, TaskResult]

    @property
    def mean(self) -> float:
        """Mean over tasks of the mean returns."""
        return float(np.mean([result.mean for result in self.tasks.values()]))

    @property
    def worst_task(self) -> str:
        """The task of the lowest mean return."""
        return min(self.tasks, key=lambda name: self.tasks[name].mean)

    def as_json(self) -> dict[str, Any]:
        """The contents of evaluation.json."""
        worst = {"name": self.worst_task, "mean": self.tasks[self.worst_task].mean}
        return {
            "tasks": {name: asdict(result) for name, result in self.tasks.items()},
            "mean": self.mean,
            "worst_task": worst,
        }

    def table(self, title: str) -> Table:
        """For printing."""
        table = Table("task", "return", "sd", "success", title=title)
        for name, result in self.tasks.items():
            success = f"{result.success_rate:.0%}"
            table.add_row(name, f"{result.mean:.1f}", f"{result.standard_deviation:.1f}", success)
        table.add_section()
        table.add_row("mean", f"{self.mean:.1f}")
        table.add_row("worst", f"{self.tasks[self.worst_task].mean:.1f}", "", self.worst_task)
        return table


@dataclass(frozen=True)
class Moment:
    """Where an episode is after one of its steps.

    Attributes:
        task: name of the task.
        episode: counted from 0.
        step: counted from 1.
        total: return so far, undiscounted.
        over: whether the episode has ended with this step; `total` is its return then.
        frame: what it looks like; None without `render_mode="rgb_array"`.
    """

    task: str
    episode: int
    step: int
    total: float
    over: bool
    frame: Frame | None


def moments(
    agent: MultiTaskDQN, task: str, episodes: int, seed: int, render_mode: str | None = None
) -> Iterator[Moment]:
    """Every step of greedy episodes on one task, with the seeds `seed`, `seed + 1`, ...

    One environment and one observation at a time, so that an episode does not depend on how many are played or shown.

    Args:
        agent: what acts.
        task: name of the task; the agent was trained on it.
        episodes: how many.
        seed: of the first episode.
        render_mode: Gymnasium's; `"human"` opens a window, `"rgb_array"` gives frames. Default None.
    """
    env = make_task_env(task, tasks=agent.task_names, variant=agent.variant, render_mode=render_mode)
    try:
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            total, step, over = 0.0, 0, False
            while not over:
                action, _ = agent.predict(observation, deterministic=True)
                observation, reward, terminated, truncated, _ = env.step(int(action))
                total += float(reward)
                step += 1
                over = terminated or truncated
                frame = cast(Frame, env.render()) if render_mode == "rgb_array" else None
                yield Moment(task, episode, step, total, over, frame)
    finally:
        env.close()


def play(
    agent: MultiTaskDQN,
    task: str,
    episodes: int,
    seed: int,
    render_mode: str | None = None,
    on_frame: OnFrame | None = None,
) -> list[float]:
    """Returns of the episodes of `moments`.

    Args:
        agent: see `moments`, as for the next four.
        task: name of the task.
        episodes: how many.
        seed: of the first episode.
        render_mode: Gymnasium's.
        on_frame: called with the episode's index and each frame; needs `render_mode="rgb_array"`.
    """
    returns = []
    for moment in moments(agent, task, episodes, seed, render_mode):
        if on_frame is not None:
            on_frame(moment.episode, cast(Frame, moment.frame))
        if moment.over:
            returns.append(moment.total)
    return returns


def evaluate(agent: MultiTaskDQN, tasks: Sequence[str], episodes: int, seed: int) -> Evaluation:
    """Returns of `episodes` greedy episodes of each task, with seeds from `seed` on."""
    return Evaluation({task: TaskResult.of(play(agent, task, episodes, seed)) for task in tasks})


def evaluate_run(method: str, config: EvaluateConfig) -> Evaluation:
    """Evaluate a finished run, show or film it where asked, and print the table.

    Raises:
        CheckpointError: the run has no readable model.
        UsageError: the model is of another variant or was not trained on the task, or an output is in the way.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes
    agent = _load_agent(method, config)
    if config.task not in ("all", *agent.task_names):
        raise UsageError(f"unknown task {config.task!r}; choose from all, {', '.join(agent.task_names)}")
    get_tasks(agent.task_names)  # a model of a stranger's may name anything, and videos are named by tasks
    tasks = agent.task_names if config.task == "all" else (config.task,)
    _check_outputs(config, tasks)
    if config.render:
        window.check_display()

    console = Console()
    results = {task: TaskResult.of(returns) for task, returns in _play_and_show(agent, tasks, config).items()}
    evaluation = Evaluation(results)
    name = run_name(config.run_method(method), config.variant)
    console.print(evaluation.table(f"{name}, seed {config.seed}: {config.episodes} greedy episodes per task"))
    if config.video_dir is not None:
        console.print(f"videos of the first {min(config.video_episodes, config.episodes)} in {config.video_dir}")
    if config.picture is not None:
        descents = {task: _descent(agent, task, result) for task, result in results.items()}
        descents = {task: frames for task, frames in descents.items() if frames}
        if descents:
            from experiments.training.descents import descents as draw  # noqa: PLC0415 - slow to load

            draw(descents, config.picture)
        console.print(f"picture in {config.picture}" if descents else "no successful episode to picture")
    return evaluation


def _check_outputs(config: EvaluateConfig, tasks: Sequence[str]) -> None:
    """Find out before anything is played or made that videos or the picture can't be written."""
    files = [] if config.picture is None else [(config.picture, "a picture")]
    if config.video_dir is not None:
        if config.video_dir.exists() and not config.video_dir.is_dir():
            raise UsageError(f"'{config.video_dir}' is a file; videos need a folder")
        names = [f"{task}.mp4" for task in tasks] + [GRID_FILE] * config.grid
        files += [(config.video_dir / name, "a video") for name in names]
    for path, what in files:
        if path.is_dir():
            raise UsageError(f"'{path}' is a folder; {what} needs a file")
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                raise UsageError(f"'{parent}' is a file; {what} needs a folder")
        existing = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=existing):  # whether files can be made there
            pass
    if config.picture is not None and config.picture.suffix != ".png":  # by which Matplotlib chooses the format
        raise UsageError(f"'{config.picture}' does not end in .png; a picture is a PNG")


def _load_agent(method: str, config: EvaluateConfig) -> MultiTaskDQN:
    path = run_dir(config.results_dir, config.run_method(method), config.variant, config.seed) / MODEL_FILE
    if not path.exists():
        raise UsageError(f"no model at '{path}'; train it: python -m experiments.{method}.train {config.train_flags}")
    agent = load_agent(path, device="cpu")
    if agent.variant != config.variant:
        raise UsageError(f"'{path}' holds a task-{agent.variant} model, not a task-{config.variant} one")
    return agent


def _play_and_show(agent: MultiTaskDQN, tasks: Sequence[str], config: EvaluateConfig) -> dict[str, list[float]]:
    """Each task's returns; the first episodes are filmed, or all shown in a window, where asked."""
    returns: dict[str, list[float]] = {task: [] for task in tasks}
    filmed = 0 if config.video_dir is None else min(config.video_episodes, config.episodes)
    mode = "human" if config.render else None
    with _progress(len(tasks) * config.episodes) as show:

        def note(moment: Moment) -> None:
            show(moment)
            if moment.over:
                returns[moment.task].append(moment.total)

        if config.video_dir is not None:
            _film(agent, tasks, filmed, config, note)
        for task in tasks:
            for moment in moments(agent, task, config.episodes - filmed, FINAL_SEED + filmed, mode):
                if config.render:
                    window.caption("   ".join(_texts(moment, config.episodes)))
                note(moment)
    return returns


def _film(
    agent: MultiTaskDQN, tasks: Sequence[str], episodes: int, config: EvaluateConfig, note: Callable[[Moment], None]
) -> None:
    """Play all tasks in step, one film for each and, where asked, one of all of them; tell `note` of every moment."""
    assert config.video_dir is not None
    with ExitStack() as stack:
        films = [stack.enter_context(film(config.video_dir / f"{task}.mp4", FPS)) for task in tasks]
        together = stack.enter_context(film(config.video_dir / GRID_FILE, FPS)) if config.grid else None
        playing = [moments(agent, task, episodes, FINAL_SEED, "rgb_array") for task in tasks]
        for _ in range(episodes):
            latest: dict[str, Frame] = {}  # a task whose episode is over stays with its last frame
            for now in itertools.zip_longest(*map(_one_episode, playing)):
                for moment, add in zip(now, films, strict=True):
                    if moment is not None:
                        frame = captioned(cast(Frame, moment.frame), _texts(moment, episodes), moment.over)
                        latest[moment.task] = frame
                        for _ in range(1 + PAUSE * moment.over):
                            add(frame)
                        note(moment)
                if together is not None:
                    together(side_by_side(list(latest.values())))
            if together is not None:
                for _ in range(PAUSE):
                    together(side_by_side(list(latest.values())))


def _one_episode(playing: Iterator[Moment]) -> Iterator[Moment]:
    """What is left of the present episode."""
    for moment in playing:
        yield moment
        if moment.over:
            return


def _texts(moment: Moment, episodes: int) -> tuple[str, ...]:
    """What to write on a frame: whose it is, and how far the episode is."""
    return (
        moment.task,
        f"episode {moment.episode + 1} of {episodes}",
        f"step {moment.step}",
        f"return {moment.total:.1f}",
    )


@contextmanager
def _progress(episodes: int) -> Iterator[Callable[[Moment], None]]:
    """A bar over all episodes of all tasks, on stderr where that is a terminal; what to tell of every moment."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("", total=episodes)

        def show(moment: Moment) -> None:
            doing = moment.task if moment.frame is None else "filming"  # which takes all tasks in step
            bar.update(row, description=doing, advance=moment.over)

        yield show


def _descent(agent: MultiTaskDQN, task: str, result: TaskResult) -> list[Frame]:
    """Every fourth frame of the task's first successful episode; empty if there is none."""
    landed = [episode for episode, total in enumerate(result.returns) if total >= SUCCESS_RETURN]
    frames: list[Frame] = []
    if landed:
        number = itertools.count()
        play(
            agent,
            task,
            episodes=1,
            seed=FINAL_SEED + landed[0],
            render_mode="rgb_array",
            on_frame=lambda _, frame: frames.append(frame) if next(number) % 4 == 0 else None,
        )
    return frames
