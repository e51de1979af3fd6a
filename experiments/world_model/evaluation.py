"""How well a model rebuilds and predicts held-out video, compared with guesses that need no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.program.flags import UsageError
from experiments.world_model.model import WorldModel
from experiments.world_model.recording import Video
from mtrl.losses import perplexity

CHANGE = 0.05  # a pixel (0 to 1) that differs by more than this counts as changed
CHUNK = 32  # sequences per batch of the evaluation


@dataclass(frozen=True)
class Windows:
    """P held-out sequences of T frames.

    Attributes:
        frames: (P, T, C, H, W), from 0 to 1.
        actions: (P, T, A), one-hot.
        tasks: the index of each sequence's task, (P,).
        context: the number of frames that a roll-out is given.
    """

    frames: Tensor
    actions: Tensor
    tasks: Tensor
    context: int


@dataclass(frozen=True)
class Seen:
    """A model's outputs for the windows. Pixels are from 0 to 1.

    Attributes:
        reconstruction: frames rebuilt from the frame before and the frame's latent, (P, T, C, H, W).
        tokenised: frames rebuilt from the frame's tokens alone, (P, T, C, H, W).
        next_frame: frame t predicted from the frames before it, (P, T, C, H, W). The first frame is the true one.
        roll_out: the frames predicted after the context, (P, T - context, C, H, W).
        attention: the slots' maps, (P, T, S, h, w).
        index: the indices of the tokens, (P, T, M).
    """

    reconstruction: Tensor
    tokenised: Tensor
    next_frame: Tensor
    roll_out: Tensor
    attention: Tensor
    index: Tensor


def held_out_windows(video: Video, context: int, horizon: int, most: int) -> Windows:
    """At most `most` windows of context + horizon frames, spread evenly over the held-out episodes.

    Raises:
        UsageError: no held-out episode has that many frames.
    """
    length = context + horizon
    starts, tasks = [], []
    for task, part in video.episodes(held_out=True):
        for start in range(part.start, part.stop - length + 1, length):  # they do not overlap
            starts.append(start)
            tasks.append(task)
    if not starts:
        raise UsageError(f"no held-out episode has {length} frames; record more with --frames")
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int))
    frames, actions = video.sequences(np.array(starts)[chosen], length)
    return Windows(frames, actions, torch.tensor(tasks)[torch.from_numpy(chosen)], context)


@torch.no_grad()
def look(model: WorldModel, windows: Windows) -> Seen:
    """The model's outputs for `windows`. Its noise has a fixed seed, so the outputs are the same each time."""
    generator = torch.Generator().manual_seed(0)
    parts: list[Seen] = []
    for frames, actions in zip(torch.split(windows.frames, CHUNK), torch.split(windows.actions, CHUNK), strict=True):
        outputs = model.forward_sequence(frames, actions, generator=generator)
        context = frames[:, : windows.context]
        parts.append(
            Seen(
                outputs["reconstruction"].clamp(0, 1),
                outputs["perceiver_reconstruction"].clamp(0, 1),
                torch.cat([frames[:, :1], model.next_frames(frames, actions)[:, :-1]], 1),
                model.roll_out(context, actions[:, :-1]),
                outputs["attention"],
                outputs["token_index"],
            )
        )
    return Seen(*(torch.cat([getattr(part, name) for part in parts]) for name in Seen.__dataclass_fields__))


def evaluate(model: WorldModel, windows: Windows, task_names: tuple[str, ...]) -> dict[str, Any]:
    """Mean squared errors per pixel and channel, for pixels from 0 to 1.

    All errors are over the frames from `windows.context` on, so that every frame has a past.

    Returns:
        A dictionary with these keys:

        * `all_pixels` and `changed_pixels`: the errors over all pixels and over those that change, each with the keys
          `reconstruction`, `tokenised`, `next_frame`, `copy_last` (a guess by the frame before) and `mean_frame` (a
          guess by the mean of the training frames);
        * `tasks`: the same for each task;
        * `roll_out`: the errors over all pixels by the number of frames ahead, for the `model` and for two guesses:
          `copy_last`, the last frame of the context, and `mean_frame`;
        * `changed_share`: the share of pixels that change;
        * `codebook_perplexity`: the perplexity of the tokens;
        * `windows`: the number of windows.
    """
    seen = look(model, windows)
    frames, context = windows.frames, windows.context
    truth, before = frames[:, context:], frames[:, context - 1 : -1]
    mean = model.mean_frame.expand_as(truth)
    changed = (truth - before).abs().amax(2) > CHANGE  # (P, L, H, W)
    guesses = {
        "reconstruction": seen.reconstruction[:, context:],
        "tokenised": seen.tokenised[:, context:],
        "next_frame": seen.next_frame[:, context:],
        "copy_last": before,
        "mean_frame": mean,
    }
    errors = {name: (guess - truth).square().mean(2) for name, guess in guesses.items()}  # (P, L, H, W)

    def table(rows: Tensor) -> dict[str, dict[str, float]]:
        moving = changed[rows]
        return {
            "all_pixels": {name: float(error[rows].mean()) for name, error in errors.items()},
            "changed_pixels": {name: float(error[rows][moving].mean()) for name, error in errors.items()},
        }

    def by_step(guess: Tensor) -> list[float]:
        values: list[float] = (guess - truth).square().mean((0, 2, 3, 4)).tolist()
        return values

    present = [index for index in range(len(task_names)) if (windows.tasks == index).any()]
    return {
        "windows": len(frames),
        "changed_share": float(changed.float().mean()),
        **table(torch.ones(len(frames), dtype=torch.bool)),
        "tasks": {task_names[index]: table(windows.tasks == index) for index in present},
        "roll_out": {
            "model": by_step(seen.roll_out),
            "copy_last": by_step(frames[:, context - 1 : context].expand_as(truth)),
            "mean_frame": by_step(mean),
        },
        "codebook_perplexity": float(perplexity(seen.index)),
    }
