"""Pictures and films of a model's reconstructions and predictions of held-out video, beside the true frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from experiments.analysis.looks import COLOURS, TASK_COLOURS
from experiments.analysis.plots.style import RC, handles_of, legend_beside, title
from experiments.program.figures import save
from experiments.training.filming import captioned, film, side_by_side
from experiments.world_model.evaluation import Seen, Windows

SHOWN = 3  # windows in a picture
FILMED = 8  # windows in a film
FILM_SCALE = 8  # height and width of a video's pixel in a film
MAP_COLOURS = "magma"
# The names of errors by their keys, and how their lines are drawn. That of reconstructions is wide and pale, because
# that of predictions lies on it.
NAMES = {
    "reconstruction": "reconstruction",
    "next_frame": "next frame",
    "tokenised": "from tokens",
    "next_tokens": "from predicted tokens",
    "copy_last": "copy of the last frame",
    "mean_frame": "mean frame",
    "model": "roll-out",
}
LINES: dict[str, dict[str, Any]] = {
    "reconstruction": {"color": TASK_COLOURS[2], "linewidth": 5, "alpha": 0.45},
    "next_frame": {"color": TASK_COLOURS[0]},
    "tokenised": {"color": TASK_COLOURS[1]},
    "next_tokens": {"color": TASK_COLOURS[1], "linestyle": "--"},
    "copy_last": {"color": COLOURS["shared_dqn"], "linestyle": "--"},
    "mean_frame": {"color": COLOURS["independent_dqn"], "linestyle": ":"},
    "model": {"color": TASK_COLOURS[3]},
}


def spread(windows: Windows, count: int) -> Tensor:
    """The indices of at most `count` windows, which alternate between the tasks."""
    by_task = [torch.nonzero(windows.tasks == task).flatten().tolist() for task in sorted(set(windows.tasks.tolist()))]
    turns = [rows[place] for place in range(max(map(len, by_task))) for rows in by_task if place < len(rows)]
    return torch.tensor(turns[:count])


def frames_figure(windows: Windows, seen: Seen, task_names: Sequence[str], path: Path) -> None:
    """True frames, reconstructions, predictions of the next frame, and frames from tokens, for one window per task."""
    context = windows.context
    strips: list[tuple[str, Tensor]] = []
    for row in spread(windows, SHOWN).tolist():
        name = task_names[int(windows.tasks[row])]
        strips += [
            (f"{name}: truth", windows.frames[row, context:]),
            ("reconstruction", seen.reconstruction[row, context:]),
            ("predicted", seen.next_frame[row, context:]),
            ("from tokens", seen.tokenised[row, context:]),
            ("predicted tokens", seen.next_tokens[row, context:]),
        ]
    _strips(strips, "Held-out frames, each rebuilt, predicted from those before, and rebuilt from its tokens", path)


def roll_outs_figure(windows: Windows, seen: Seen, task_names: Sequence[str], path: Path) -> None:
    """True frames and the model's roll-out from the first frames and the actions, for one window per task."""
    context = windows.context
    strips: list[tuple[str, Tensor]] = []
    for row in spread(windows, SHOWN).tolist():
        name = task_names[int(windows.tasks[row])]
        frames = windows.frames[row]
        strips += [(f"{name}: truth", frames), ("roll-out", torch.cat([frames[:context], seen.roll_out[row]]))]
    text = f"Roll-outs of {len(seen.roll_out[0])} frames beyond the {context} given, on episodes kept from training"
    _strips(strips, text, path, mark=context)


def attention_figure(windows: Windows, seen: Seen, path: Path) -> None:
    """The attention maps of each slot over the first window."""
    row = int(spread(windows, 1)[0])
    maps = seen.attention[row]  # (T, S, h, w)
    grey = maps / maps.amax((-2, -1), keepdim=True)
    coloured = torch.from_numpy(mpl.colormaps[MAP_COLOURS](grey.numpy())[..., :3]).movedim(-1, 2)  # (T, S, C, h, w)
    strips = [("truth", windows.frames[row])]
    strips += [(f"slot {slot + 1}", coloured[:, slot]) for slot in range(coloured.shape[1])]
    _strips(strips, "Attention maps of the slots, each from 0 (dark) to its largest value (bright)", path)


def errors_figure(curves: Mapping[str, tuple[Any, Any]], evaluation: Mapping[str, Any], path: Path) -> None:
    """Errors on held-out video: during training, at its end on the pixels that change, and by frames ahead.

    Args:
        curves: steps and values by the key of metrics.jsonl.
        evaluation: the contents of evaluation.json.
        path: the picture to write.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(11, 3.3), layout="constrained")
        course, end, ahead = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
        for name, style in LINES.items():
            if (key := f"eval/{name}") in curves:
                steps, values = curves[key]
                course.plot(steps, values, marker="." if len(steps) == 1 else "", label=NAMES[name], **style)
        changed = evaluation["changed_pixels"]
        names = list(changed)
        end.barh(range(len(names)), list(changed.values()), color=[LINES[name]["color"] for name in names])
        end.set_yticks(range(len(names)), [NAMES[name] for name in names])
        end.invert_yaxis()
        for name, values in evaluation["roll_out"].items():
            ahead.plot(range(1, len(values) + 1), values, label=NAMES[name], **LINES[name])
        for axes, heading, abscissa in (
            (course, "all pixels, during training", "updates"),
            (end, "pixels that change, at the end", "mean squared error"),
            (ahead, "roll-outs, all pixels", "frames ahead"),
        ):
            axes.set_title(heading)
            axes.set_xlabel(abscissa)
        for axes in (course, ahead):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        course.set_ylabel("mean squared error")
        legend_beside(ahead, handles_of([course, ahead]))
        note = f"Mean squared errors on {evaluation['windows']} held-out sequences; pixels are from 0 to 1."
        title(figure, "Errors on held-out video", note)
        save(figure, path)


def reconstructions_film(windows: Windows, seen: Seen, task_names: Sequence[str], fps: int, path: Path) -> None:
    """A film of true frames, reconstructions, predictions of the next frame, and frames from tokens, side by side."""
    shown = {
        "truth": windows.frames,
        "reconstruction": seen.reconstruction,
        "predicted": seen.next_frame,
        "from tokens": seen.tokenised,
    }
    _film(shown, windows, task_names, fps, path, first=windows.context)


def roll_outs_film(windows: Windows, seen: Seen, task_names: Sequence[str], fps: int, path: Path) -> None:
    """A film of true frames and roll-outs, side by side."""
    given = windows.frames[:, : windows.context]
    shown = {"truth": windows.frames, "roll-out": torch.cat([given, seen.roll_out], 1)}
    _film(shown, windows, task_names, fps, path)


def landing_figure(pairs: Mapping[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Flights inside the model against the same flights in the game, a panel for each quantity.

    Args:
        pairs: numbers (P,) inside and outside, by the name of the quantity.
        path: the picture to write.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(3.5 * len(pairs), 3.8), layout="constrained")
        panels = figure.subplots(1, len(pairs), squeeze=False)[0]
        for axes, (name, (inside, outside)) in zip(panels, pairs.items(), strict=True):
            axes.axline((float(outside.mean()), float(outside.mean())), slope=1, color="0.7", linewidth=1)
            axes.plot(outside, inside, "o", markersize=4, alpha=0.6, color=TASK_COLOURS[0])
            r = float(torch.corrcoef(torch.stack([inside, outside]))[0, 1])
            axes.set_title(f"{name}: r = {r:.2f}")
            axes.set_xlabel("in the game")
        panels[0].set_ylabel("inside the model")
        title(figure, "A landing policy inside the world model and in the game", "The line is where both are equal.")
        save(figure, path)


def _film(
    shown: Mapping[str, Tensor], windows: Windows, task_names: Sequence[str], fps: int, path: Path, first: int = 0
) -> None:
    with film(path, fps) as add:
        for row in spread(windows, FILMED).tolist():
            task = task_names[int(windows.tasks[row])]
            for step in range(first, windows.frames.shape[1]):
                frames = []
                for name, video in shown.items():
                    given = name == "roll-out" and step < windows.context
                    texts = (f"{task}: {name}", "given" if given else f"frame {step + 1}")
                    frames.append(captioned(_large(video[row, step]), texts))
                add(side_by_side(frames))


def _large(frame: Tensor) -> NDArray[np.uint8]:
    """Enlarge a frame (C, H, W) from 0 to 1 to (8 H, 8 W, C) from 0 to 255."""
    small = (frame.movedim(0, -1) * 255).round().byte().numpy()
    large: NDArray[np.uint8] = small.repeat(FILM_SCALE, 0).repeat(FILM_SCALE, 1)
    return large


def _strips(strips: Sequence[tuple[str, Tensor]], text: str, path: Path, mark: int | None = None) -> None:
    """Draw named rows of frames (T, C, H, W). The frames before `mark` get an orange border."""
    count = len(strips[0][1])
    with mpl.rc_context(RC):
        figure = Figure(
            figsize=(1.2 + 0.8 * count, 0.5 + 0.55 * len(strips)),
            layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0),
        )
        panels = figure.subplots(len(strips), count, squeeze=False)
        for row, (name, frames) in zip(panels, strips, strict=True):
            for place, (axes, frame) in enumerate(zip(row, frames, strict=True)):
                axes.imshow(frame.movedim(0, -1).numpy(), interpolation="nearest", vmin=0, vmax=1, aspect="auto")
                axes.set_xticks([])
                axes.set_yticks([])
                given = mark is not None and place < mark
                axes.spines[:].set(visible=True, color="#D55E00" if given else "0.6", linewidth=1.2 if given else 0.6)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        title(figure, text, "Orange: given." if mark is not None else "")
        save(figure, path)
