"""Evaluates a trained world model on a fresh video, which is recorded for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.table import Table

from experiments.program.outputs import check_file, write_json
from experiments.program.run_files import read_config
from experiments.program.run_folder import MODEL_FILE
from experiments.program.terminal import console, show_table
from experiments.world_model import figures
from experiments.world_model.config import FreshVideoConfig
from experiments.world_model.evaluation import evaluate, judge, look, windows_of
from experiments.world_model.recording import RECORDINGS, VideoSettings, load_with_progress
from experiments.world_model.saving import load_model

SHOWN_STEPS = (1, 2, 4, 8, 16, 32)  # frames ahead that the table shows
ERRORS = ("tokenised", "reconstruction", "next_frame", "next_tokens", "copy_last", "mean_frame")


def evaluate_run(config: FreshVideoConfig) -> dict[str, Any]:
    """Record the fresh video if it is not there, evaluate the model of the run, and print the errors.

    Writes fresh_video.json with the numbers and fresh_roll_outs.png into the folder of the run. With the frames and the
    seed of the video that the model was trained on, only the episodes count that were held out from training.

    Returns:
        The contents of fresh_video.json.

    Raises:
        CheckpointError: the run has no readable model.
        UsageError: the folder holds no run, or the video has no episode that is long enough.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes
    folder = config.run_dir
    trained = load_model(folder / MODEL_FILE)
    settings = read_config(folder)["settings"]
    written = folder / "fresh_video.json", folder / "fresh_roll_outs.png"
    for path in written:
        check_file(path)
    tasks = tuple(settings["tasks"])
    shape = VideoSettings.of(tasks, config.frames, settings["frame_skip"], config.window, config.recording_seed)
    video = load_with_progress(config.results_dir / RECORDINGS, shape, config.quiet)
    trained_on = (settings["frames"], settings["recording_seed"]) == (config.frames, config.recording_seed)
    windows = windows_of(video, config.context, config.horizon, config.windows, held_out=True if trained_on else None)
    evaluation = {
        "video": shape.file_name,
        "held_out_episodes_only": trained_on,
        **evaluate(trained.model, windows, tasks),
        "discriminator": judge(trained, windows),
    }
    write_json(written[0], evaluation)
    figures.roll_outs_figure(windows, look(trained.model, windows), tasks, written[1])
    if not config.quiet:
        _show(evaluation, f"{config.balancer}, seed {config.seed}, on {len(windows.frames)} sequences")
    print(f"numbers in {written[0]}, roll-outs in {written[1]}")
    return evaluation


def _show(evaluation: Mapping[str, Any], title: str) -> None:
    errors = Table("squared error", "all pixels", "pixels that change", title=title)
    for name in ERRORS:
        every, changed = evaluation["all_pixels"][name], evaluation["changed_pixels"][name]
        errors.add_row(figures.NAMES[name], f"{every:.6f}", f"{changed:.4f}")
    show_table(errors, console())
    model, copy = evaluation["roll_out"]["model"], evaluation["roll_out"]["copy_last"]
    ahead = Table("roll-outs: frames ahead", "error", "of copying", title="")
    for step in (step for step in SHOWN_STEPS if step <= len(model)):
        ahead.add_row(str(step), f"{model[step - 1]:.6f}", f"{model[step - 1] / copy[step - 1]:.2f}")
    show_table(ahead, console())
    right, tokens = evaluation["discriminator"], evaluation["next_token"]
    judged = f"{right['reconstruction']:.0%} of reconstructions and {right['roll_out']:.0%} of roll-outs"
    print(f"the discriminator is right on {judged}, where half of the pairs are real and 50% is chance")
    ahead_of = f"{tokens['model']:.1%} of the next tokens, and {tokens['changed_model']:.1%} of those that change"
    print(f"predicted right: {ahead_of}; a copy of the tokens before gets {tokens['copy_last']:.1%} right")
