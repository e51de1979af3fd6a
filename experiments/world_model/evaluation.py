"""How well a model rebuilds and predicts held-out video, compared with guesses that need no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.program.flags import UsageError
from experiments.world_model.discriminator import accuracy, judgements
from experiments.world_model.model import WorldModel
from experiments.world_model.recording import Video
from experiments.world_model.saving import Trained
from mtrl.losses import ModelOutputs, perplexity

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
        next_tokens: frame t drawn from the likeliest tokens, predicted from the frames before it, (P, T, C, H, W). The
            first frame is drawn from its own tokens.
        roll_out: the frames predicted after the context, (P, T - context, C, H, W).
        attention: the slots' maps, (P, T, S, h, w).
        index: the indices of the tokens, (P, T, M).
        predicted_index: the likeliest next tokens, (P, T - 1, M).
    """

    reconstruction: Tensor
    tokenised: Tensor
    next_frame: Tensor
    next_tokens: Tensor
    roll_out: Tensor
    attention: Tensor
    index: Tensor
    predicted_index: Tensor


def windows_of(video: Video, context: int, horizon: int, most: int, held_out: bool | None = True) -> Windows:
    """At most `most` windows of context + horizon frames, spread evenly over episodes.

    Args:
        video: the video.
        context: the number of frames that a roll-out is given.
        horizon: the number of frames that it predicts.
        most: the largest number of windows.
        held_out: which episodes: the held-out ones, the others, or all (None). Default: the held-out ones.

    Raises:
        UsageError: none of these episodes has that many frames.
    """
    length = context + horizon
    starts, tasks = [], []
    for task, part in video.episodes(held_out):
        for start in range(part.start, part.stop - length + 1, length):  # they do not overlap
            starts.append(start)
            tasks.append(task)
    if not starts:
        which = {True: "no held-out", False: "no training", None: "no"}[held_out]
        raise UsageError(f"{which} episode has {length} frames; record more with --frames")
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int))
    frames, actions = video.sequences(np.array(starts)[chosen], length)
    return Windows(frames, actions, torch.tensor(tasks)[torch.from_numpy(chosen)], context)


def _outputs(model: WorldModel, windows: Windows) -> Iterator[tuple[Tensor, Tensor, ModelOutputs]]:
    """Frames, actions and a model's outputs, a chunk of the windows at a time.

    The model's noise has a fixed seed, so that the outputs are the same each time.
    """
    generator = torch.Generator().manual_seed(0)
    horizon = windows.frames.shape[1] - windows.context
    for frames, actions in zip(torch.split(windows.frames, CHUNK), torch.split(windows.actions, CHUNK), strict=True):
        yield frames, actions, model.forward_sequence(frames, actions, generator=generator, unroll=horizon)


@torch.no_grad()
def look(model: WorldModel, windows: Windows) -> Seen:
    """The model's outputs for `windows`, which are the same each time."""
    parts: list[Seen] = []
    for frames, actions, outputs in _outputs(model, windows):
        predicted = outputs["next_token_logits"].argmax(-1)  # (B, T - 1, M)
        drawn = model.tokenizer.decode(model.tokenizer.codes[predicted.flatten(0, 1)])
        tokenised = outputs["perceiver_reconstruction"].clamp(0, 1)
        parts.append(
            Seen(
                outputs["reconstruction"].clamp(0, 1),
                tokenised,
                torch.cat([frames[:, :1], model.next_frames(frames, actions)[:, :-1]], 1),
                torch.cat([tokenised[:, :1], torch.unflatten(drawn.clamp(0, 1), 0, predicted.shape[:2])], 1),
                outputs["unrolled"].clamp(0, 1),
                outputs["attention"],
                outputs["token_index"],
                predicted,
            )
        )
    return Seen(*(torch.cat([getattr(part, name) for part in parts]) for name in Seen.__dataclass_fields__))


@torch.no_grad()
def judge(trained: Trained, windows: Windows) -> dict[str, float]:
    """The shares of right judgements of the discriminator, 0.5 by chance, where half of the pairs are real.

    Returns:
        The shares by what the pairs that are not real are: `reconstruction` or `roll_out`.
    """
    logits = [judgements(trained.discriminator, each, frames) for frames, _, each in _outputs(trained.model, windows)]
    real, fake = (torch.cat(each) for each in zip(*logits, strict=True))
    count = windows.frames.shape[1] - 1  # of reconstructions; roll-outs follow
    parts = {"reconstruction": slice(None, count), "roll_out": slice(count, None)}
    return {name: accuracy(real[:, part], fake[:, part]) for name, part in parts.items()}


def evaluate(model: WorldModel, windows: Windows, task_names: tuple[str, ...]) -> dict[str, Any]:
    """Mean squared errors per pixel and channel, for pixels from 0 to 1.

    All errors are over the frames from `windows.context` on, so that every frame has a past.

    Returns:
        A dictionary with these keys:

        * `all_pixels` and `changed_pixels`: the errors over all pixels and over those that change, each with the keys
          `reconstruction`, `tokenised`, `next_frame`, `next_tokens`, `copy_last` (a guess by the frame before) and
          `mean_frame` (a guess by the mean of the training frames);
        * `tasks`: the same for each task;
        * `roll_out`: the errors over all pixels by the number of frames ahead, for the `model` and for two guesses:
          `copy_last`, the last frame of the context, and `mean_frame`;
        * `changed_share`: the share of pixels that change;
        * `codebook_perplexity`: the perplexity of the tokens;
        * `next_token`: the shares of next tokens that are right, for the `model` and for `copy_last`, the tokens of the
          frame before, and `changed_model`, the model's share among the tokens that change;
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
        "next_tokens": seen.next_tokens[:, context:],
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
        "next_token": _next_token(seen, context),
    }


def _next_token(seen: Seen, context: int) -> dict[str, float]:
    """The shares of next tokens that are right; see `evaluate`."""
    tokens, before = seen.index[:, context:], seen.index[:, context - 1 : -1]
    right, copied = seen.predicted_index[:, context - 1 :] == tokens, before == tokens
    return {
        "model": float(right.float().mean()),
        "copy_last": float(copied.float().mean()),
        "changed_model": float(right[~copied].float().mean()),
    }
