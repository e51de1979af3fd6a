"""The `evaluate` program of every method: play the agent of a finished run, print its returns, show or film it."""

from __future__ import annotations

import itertools
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch

from agents import MultiTaskAlgorithm, load_agent
from experiments.program.flags import UsageError
from experiments.program.outputs import check_file, check_folder
from experiments.program.run_folder import is_begun
from experiments.program.tasks import file_stems, get_tasks, tasks_called
from experiments.program.terminal import console, progress, show_table
from experiments.training.animation import FRAME_SECONDS, animate, width_of_frames
from experiments.training.config import Algorithm, EvaluateConfig
from experiments.training.descents import draw_descents
from experiments.training.evaluation import FINAL_SEED, Evaluation, Moment, TaskResult, moments, result_of, task_env
from experiments.training.filming import Frame, as_frame, captioned, film, shrunk, side_by_side, with_gust
from experiments.training.window import window
from mtrl.rl.tasks import AnyTask

GRID_FILE = "grid.mp4"
STILL_STEPS = 4
"""Steps between the frames from which a still picture takes its moments."""
ANIMATED = (".gif", ".webp")
USUAL_FPS = 30
"""Frames per second of an environment that does not say how many it is made for."""


def evaluate_run(config: EvaluateConfig, method: str) -> Evaluation:
    """Play the agent of a finished run, show or film it where asked, and print the table of its returns.

    Args:
        config: which run, and what to show.
        method: the name of the method that trained the run.

    Raises:
        CheckpointError: the run has no readable model.
        UsageError: the model is of another variant or was not trained on the task, or an output is in the way.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes
    agent = _load_agent(method, config)
    tasks = _chosen(agent, config)
    _check_outputs(config, [task.name for task in tasks])
    frame_rates = _check_tasks(agent, tasks, config)
    with ExitStack() as stack:
        show = stack.enter_context(window()) if config.render else None
        ends = _play_and_show(agent, tasks, config, frame_rates, show)
        results = {name: result_of(of_task) for name, of_task in ends.items()}
    evaluation = Evaluation(results)
    name = config.run_name(method)
    which = "pretrained" if config.pretrained else f"seed {config.seed}"
    table = evaluation.table(f"{name}, {which}: {config.episodes} greedy episodes per task")
    show_table(table, console())
    if config.video_dir is not None:
        print(f"videos of the first {min(config.video_episodes, config.episodes)} in {config.video_dir}")
    if config.picture is not None:
        drawn = _draw_picture(agent, tasks, results, frame_rates, config.picture)
        print(f"picture in {config.picture}" if drawn else "no successful episode to picture")
    return evaluation


def _chosen(agent: MultiTaskAlgorithm, config: EvaluateConfig) -> tuple[AnyTask, ...]:
    """The tasks to play.

    Raises:
        UsageError: the agent has not learned one of them, or nobody says where it is.
    """
    given = tuple(task.name for task in get_tasks(config.tasks)) if config.tasks else agent.task_names
    names = given if config.task == "all" else (config.task,)
    for name in names:
        if name not in agent.task_names:
            raise UsageError(f"unknown task {name!r}; choose from all, {', '.join(agent.task_names)}")
    return tuple(tasks_called(names, config.tasks).values())


def _check_tasks(agent: MultiTaskAlgorithm, tasks: Sequence[AnyTask], config: EvaluateConfig) -> dict[str, int]:
    """Find out before anything is played or written whether each task can be played and shown as the user wants it.

    Returns:
        The frames per second of each task, by its name.

    Raises:
        UsageError: a task cannot be played or filmed.
        ValueError: its environment can't be made, or can't be shown.
    """
    pictures = config.render or config.video_dir is not None or config.picture is not None
    rates = {}
    for task in tasks:
        env = task_env(agent, task, "rgb_array" if pictures else None)
        if pictures:
            env.reset(seed=0)
            try:
                as_frame(env.render(), task.name)
            except NotImplementedError:  # Gymnasium's own answer where there is no such method
                raise UsageError(f"task {task.name!r} can't be shown: its environment has no render()") from None
        rates[task.name] = max(1, round(env.metadata.get("render_fps") or USUAL_FPS))
        env.close()
    return rates


def _check_outputs(config: EvaluateConfig, tasks: Sequence[str]) -> None:
    """Find out before anything is played or written whether the videos and the picture can be written.

    Raises:
        UsageError: they cannot.
    """
    files = [] if config.picture is None else [(config.picture, "a picture")]
    if config.video_dir is not None:
        check_folder(config.video_dir, "videos need a folder")
        names = [*_film_names(tasks).values()] + [GRID_FILE] * config.grid
        files += [(config.video_dir / name, "a video") for name in names]
    for path, what in files:
        check_file(path, f"{what} needs a file")
        check_folder(path.parent, f"{what} needs a folder")
        existing = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=existing):  # whether files can be made there
            pass
    if config.picture is not None and config.picture.suffix not in (".png", *ANIMATED):
        raise UsageError(f"'{config.picture}' does not end in .png, or in {' or '.join(ANIMATED)} for a moving picture")


def _film_names(tasks: Sequence[str]) -> dict[str, str]:
    """The name of each task's film, by the name of the task; none of them is that of the film of all tasks."""
    stems = file_stems((GRID_FILE.removesuffix(".mp4"), *tasks))
    return {task: f"{stems[task]}.mp4" for task in tasks}


def _load_agent(method: str, config: EvaluateConfig) -> MultiTaskAlgorithm:
    path = config.model(method)
    if config.pretrained and not path.exists():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.safetensors"))) or "none"
        raise UsageError(f"no agent '{path.stem}' comes with the project; there are {there}")
    if not path.exists():
        if is_begun(path.parent):
            raise UsageError(f"'{path.parent}' holds an unfinished run; the command that began it continues it")
        others = [other for other in get_args(Algorithm) if replace(config, algorithm=other).model(method).exists()]
        hint = f"there is one of --algorithm {others[0]}; " if others else ""
        is_usual = config.results_dir == EvaluateConfig.results_dir
        place = "" if is_usual else f" --results-dir {shlex.quote(str(config.results_dir))}"
        command = f"python -m experiments.{method}.train {config.train_flags}{place}"
        raise UsageError(f"no model at '{path}'; {hint}train it: {command}")
    agent = load_agent(path, device="cpu")
    if agent.variant != config.variant:
        raise UsageError(f"'{path}' holds a task-{agent.variant} model, not a task-{config.variant} one")
    return agent


def _play_and_show(
    agent: MultiTaskAlgorithm,
    tasks: Sequence[AnyTask],
    config: EvaluateConfig,
    frame_rates: Mapping[str, int],
    show_frame: Callable[[Frame, int], None] | None,
) -> dict[str, list[Moment]]:
    """The last moment of each episode, by task. Where asked, the first episodes are filmed, or all are shown."""
    ends: dict[str, list[Moment]] = {task.name: [] for task in tasks}
    filmed = 0 if config.video_dir is None else min(config.video_episodes, config.episodes)
    mode = None if show_frame is None else "rgb_array"
    with _progress(len(tasks) * config.episodes) as show:

        def note(moment: Moment) -> None:
            show(moment)
            if moment.over:
                ends[moment.task].append(replace(moment, frame=None))

        if config.video_dir is not None:
            _film(agent, tasks, filmed, config, frame_rates, note)
        for task in tasks:
            for moment in moments(agent, task, config.episodes - filmed, FINAL_SEED + filmed, mode):
                note(moment)
                if show_frame is not None:
                    for _ in range(_frames_of(moment, frame_rates[task.name])):
                        show_frame(_scene(moment, config.episodes), frame_rates[task.name])
    return ends


def _film(
    agent: MultiTaskAlgorithm,
    tasks: Sequence[AnyTask],
    episodes: int,
    config: EvaluateConfig,
    frame_rates: Mapping[str, int],
    note: Callable[[Moment], None],
) -> None:
    """Film all tasks, step by step in parallel: one film for each task and, where asked, one film of all tasks.

    `note` is called with every moment. At the end of an episode a film rests for one second.
    """
    assert config.video_dir is not None
    names, rates = _film_names([task.name for task in tasks]), [frame_rates[task.name] for task in tasks]
    fastest = max(rates)
    with ExitStack() as stack:
        films = [
            stack.enter_context(film(config.video_dir / names[task.name], rate))
            for task, rate in zip(tasks, rates, strict=True)
        ]
        together = stack.enter_context(film(config.video_dir / GRID_FILE, fastest)) if config.grid else None
        playing = [moments(agent, task, episodes, FINAL_SEED, "rgb_array") for task in tasks]
        for _ in range(episodes):
            latest: dict[str, Frame] = {}  # when the episode of a task is over, its last frame stays
            for now in itertools.zip_longest(*map(_one_episode, playing)):
                for moment, add, rate in zip(now, films, rates, strict=True):
                    if moment is not None:
                        frame = latest[moment.task] = _scene(moment, episodes)
                        for _ in range(_frames_of(moment, rate)):
                            add(frame)
                        note(moment)
                if together is not None:
                    together(side_by_side(list(latest.values())))
            if together is not None:
                for _ in range(fastest):
                    together(side_by_side(list(latest.values())))


def _one_episode(playing: Iterator[Moment]) -> Iterator[Moment]:
    """The moments that are left of the present episode."""
    for moment in playing:
        yield moment
        if moment.over:
            return


def _frames_of(moment: Moment, rate: int) -> int:
    """How many frames a film has of a moment: the last one of an episode stays for one second."""
    return 1 + rate * moment.over


def _scene(moment: Moment, episodes: int = 1, width: int | None = None) -> Frame:
    """The frame of a moment, at most `width` pixels wide, with what there is to say of it on a strip beneath.

    It says the task, its physics, the episode if there are several, the step, the return so far, and how the episode
    ended. The push of a gust is an arrow.
    """
    frame = cast(Frame, moment.frame)
    if moment.gust:
        frame = with_gust(frame, moment.gust)
    episode = [f"episode {moment.episode + 1} of {episodes}"] if episodes > 1 else []
    texts = [*episode, f"step {moment.step}", f"return {moment.total:.1f}"]
    return captioned(frame if width is None else shrunk(frame, width), texts, _title(moment), moment.verdict)


def _title(moment: Moment) -> str:
    return f"{moment.task}: {moment.about}" if moment.about else moment.task


@contextmanager
def _progress(episodes: int) -> Iterator[Callable[[Moment], None]]:
    """A progress bar over all episodes of all tasks, on stderr where that is a terminal.

    Gives a function to be called with every moment.
    """
    there = console(sys.stderr)
    with progress(not there.is_terminal, console=there, transient=True) as bar:
        row = bar.add_task("", total=episodes)

        def show(moment: Moment) -> None:
            doing = moment.task if moment.frame is None else "filming"  # all tasks are filmed in parallel
            bar.update(row, description=doing, advance=moment.over)

        yield show


def _draw_picture(
    agent: MultiTaskAlgorithm,
    tasks: Sequence[AnyTask],
    results: Mapping[str, TaskResult],
    frame_rates: Mapping[str, int],
    path: Path,
) -> bool:
    """Picture the first successful episode of each task; of a task that does not say what success is, the first one.

    Returns:
        Whether there is a picture, which needs a successful episode of at least one task.
    """
    good = {
        name: [episode for episode, success in enumerate(result.successes) if success is not False]
        for name, result in results.items()
    }
    pictured = [task for task in tasks if good[task.name]]
    episodes = [moments(agent, task, 1, FINAL_SEED + good[task.name][0], "rgb_array") for task in pictured]
    if pictured and path.suffix in ANIMATED:
        width, rates = width_of_frames(len(pictured)), [frame_rates[task.name] for task in pictured]
        shown = [
            _every(max(1, round(rate * FRAME_SECONDS)), episode) for rate, episode in zip(rates, episodes, strict=True)
        ]
        animate([(_scene(moment, width=width) for moment in of_task) for of_task in shown], path)
    elif pictured:
        stills = [list(_every(STILL_STEPS, episode)) for episode in episodes]
        draw_descents({_title(few[0]): [cast(Frame, moment.frame) for moment in few] for few in stills}, path)
    return bool(pictured)


def _every(step: int, episode: Iterator[Moment]) -> Iterator[Moment]:
    """Every `step`-th moment of an episode, and the last one."""
    return (moment for moment in episode if moment.step % step == 0 or moment.over)
