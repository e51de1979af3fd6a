"""Draws what each balancer makes of two task gradients: `python -m docs.methods.make_pictures`, in the root.

The balancers of `mtrl` themselves compute every arrow. The pictures lie in `docs/methods/pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.analysis.looks import COLOURS, TASK_COLOURS
from experiments.demonstrations.gradients import rotated
from experiments.program.figures import save
from mtrl.balancers import RGB, Balance, Balancer, MemoryBalancer, make_balancer
from mtrl.gradients import TaskGradients

Vector = NDArray[np.float64]  # (2,)

FOLDER = Path(__file__).parent / "pictures"
GRADIENTS = np.array([[2.2, 0.3], [-0.8, 0.7]])  # they conflict, and one is twice as long; also the page's "conflict"
TEXT, MUTED, LINE, HARMLESS = "#1b1f26", "#596070", "#d9dce3", "#e3f3e6"
NAMES = ("g₁", "g₂")
AGGREGATORS = ("UPGrad", "MGDA", "CAGrad", "NashMTL", "IMTLG", "AlignedMTL", "FairGrad", "ConFIG")
OVERVIEW = ("equal", "static", "normalised", "gradnorm", "pcgrad", "gradnorm_pcgrad", "rgb", "aim")


@dataclass
class Answer:
    """What a method makes of `GRADIENTS`.

    Attributes:
        update: (2,).
        parts: what the update is the sum of, one (2,) for each task.
        labels: the names of the parts.
        state: what the method had seen before, in words.
        others: updates of the same method in other states.
        memory: the remembered direction (2,), of length 1.
    """

    update: Vector
    parts: list[Vector]
    labels: list[str]
    state: str = ""
    others: list[Vector] = field(default_factory=list)
    memory: Vector | None = None


def ask(balancer: Balancer, gradients: Vector = GRADIENTS) -> tuple[Balance, Vector]:
    """The answer of the balancer, for losses of 1, and its update (2,)."""
    rows = TaskGradients(torch.tensor(gradients))
    balance = balancer(rows, torch.ones(len(gradients), dtype=torch.float64))
    return balance, balance.update(rows).numpy()


def weighted(balancer: Balancer, state: str = "") -> Answer:
    """The answer of a method that weighs the gradients."""
    balance, update = ask(balancer)
    coefficients = balance.coefficients.tolist()
    parts = [coefficient * gradient for coefficient, gradient in zip(coefficients, GRADIENTS, strict=True)]
    return Answer(update, parts, [f"{c:.2f} {name}" for c, name in zip(coefficients, NAMES, strict=True)], state)


def answer_of_rgb() -> Answer:
    """RGB's answer: the parts are the turned gradients, which have one length."""
    balancer = RGB(2)
    balance, update = ask(balancer)
    angles = balance.diagnostics["angle"]
    length = np.linalg.norm(GRADIENTS, axis=1).mean()
    parts = [*(length * rotated(torch.tensor(GRADIENTS), balancer, angles).numpy())]
    labels = [f"{name} turned {angle:.0f}°" for name, angle in zip(NAMES, angles.rad2deg().tolist(), strict=True)]
    later = [ask(balancer)[1] for _ in range(29)][-1]
    return Answer(update, parts, labels, "first call, gradients brought to one length; thin: 30th call", [later])


def answer_of_memory() -> Answer:
    """The memory's answer: the parts are the gradients of equal length, whose sum it turns."""
    balancer = MemoryBalancer(2)
    cos, sin = 0.0, 1.0  # of 90 degrees
    ask(balancer, GRADIENTS @ np.array([[cos, sin], [-sin, cos]]))
    _, update = ask(balancer)
    assert balancer.direction is not None
    before = weighted(make_balancer("normalised", 2))
    state = "after one call with gradients turned 90° to the left; d: remembered"
    return Answer(update, before.parts, before.labels, state, [before.update], balancer.direction.numpy())


def answer_of(name: str) -> Answer:
    """What the method `name` answers, in the state that the picture says."""
    if name in OWN:
        return OWN[name]()
    if name == "static":
        return weighted(make_balancer(name, 2, weights=(0.5, 1.5)), "weights 0.5 and 1.5")
    balancer = make_balancer(name, 2)
    if name in ("gradnorm", "gradnorm_pcgrad"):
        for _ in range(400):
            ask(balancer)
        return weighted(balancer, "after a warm-up of 100 updates and 300 more,\nwith losses that stay as they were")
    if name == "random":
        answer = weighted(balancer, "first draw of seed 0; thin: the next 12")
        return replace(answer, parts=[], others=[ask(balancer)[1] for _ in range(12)])
    return weighted(balancer, {"aim": "first call: thresholds at 0, no guidance"}.get(name, ""))


OWN = {"rgb": answer_of_rgb, "memory": answer_of_memory}


def arrow(axes: Axes, start: Vector, end: Vector, colour: str, width: float, **looks: Any) -> None:
    """An arrow whose head keeps its size, or a ring where the arrow would have no length."""
    if np.linalg.norm(end - start) < 1e-3:
        axes.plot(*start, marker="o", markersize=3 * width, markerfacecolor="none", markeredgecolor=colour)
        return
    head = f"-|>,head_width={0.12 + 0.06 * width},head_length={0.25 + 0.12 * width}"
    own = {"arrowstyle": head, "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 12}
    axes.annotate("", (end[0], end[1]), (start[0], start[1]), arrowprops=own | looks)


def write(axes: Axes, at: Vector, away: Vector, text: str, colour: str) -> None:
    """A label beside the point `at`, on the side that the vector `away` points to."""
    x, y = away / max(float(np.linalg.norm(away)), 1e-9)
    beside = abs(x) > 0.3  # otherwise above or below
    shift = (x * 8 + (np.sign(x) * 3.1 * len(text) if beside else 0), y * 11)
    axes.annotate(
        text,
        (at[0], at[1]),
        shift,
        color=colour,
        ha="center",
        va="center",
        textcoords="offset points",
        fontsize=9.5,
        fontweight="bold",
    )


def prepare(axes: Axes, reach: tuple[float, float, float, float]) -> None:
    """An empty plane: left, right, bottom and top end."""
    left, right, bottom, top = reach
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    axes.set_facecolor("white")
    axes.spines[:].set_visible(False)
    axes.patch.set(edgecolor=LINE, linewidth=1)
    axes.axhline(0, color=LINE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=LINE, linewidth=0.8, zorder=0)


def shade(axes: Axes) -> None:
    """Shade the updates that make no task worse."""
    far = 20.0
    normals = [np.array([-g[1], g[0]]) if g[0] > 0 else np.array([g[1], -g[0]]) for g in GRADIENTS]
    corners = np.array([[0.0, 0.0], *(far * normal / np.linalg.norm(normal) for normal in normals)])
    axes.fill(*corners.T, color=HARMLESS, zorder=-1, linewidth=0)


def draw_gradients(axes: Axes, width: float) -> None:
    """The task gradients with their names."""
    for gradient, name, colour in zip(GRADIENTS, NAMES, TASK_COLOURS, strict=False):
        arrow(axes, np.zeros(2), gradient, colour, width)
        write(axes, gradient, gradient, name, colour)


def reach_of(points: Sequence[Vector], margin: float) -> tuple[float, float, float, float]:
    """The ends of a plane that holds the points."""
    low, high = np.min([np.zeros(2), *points], axis=0), np.max([np.zeros(2), *points], axis=0)
    return low[0] - margin, high[0] + margin, low[1] - 0.6 * margin, high[1] + 0.7 * margin


def draw_answer(axes: Axes, answer: Answer, colour: str) -> None:
    """The update, and the parts that it is the sum of, each beginning where the one before ends."""
    for other in answer.others:
        arrow(axes, np.zeros(2), other, colour, 0.8, alpha=0.6)
    if answer.memory is not None:
        tip = 1.3 * answer.memory
        arrow(axes, np.zeros(2), tip, MUTED, 1.4, linestyle=(0, (2, 1.5)))
        write(axes, tip, tip, "d", MUTED)
    start = np.zeros(2)
    for part, label, own in zip(answer.parts, answer.labels, TASK_COLOURS, strict=False):
        arrow(axes, start, start + part, own, 1.6)
        write(axes, start + part / 2, np.array([part[1], -part[0]]), label, own)
        start = start + part
    arrow(axes, np.zeros(2), answer.update, colour, 3.2)
    left = np.array([-answer.update[1], answer.update[0]])
    write(axes, answer.update, left if answer.parts else answer.update, "update", colour)


def sized(reach: tuple[float, float, float, float], columns: int, rows: int, rest: float) -> Figure:
    """A figure that has room for planes of this reach, and `rest` inches of text in each row."""
    left, right, bottom, top = reach
    height = 7.6 / columns * (top - bottom) / (right - left)
    return Figure(figsize=(7.6, rows * (height + rest)), layout="constrained", facecolor="white")


def draw_method(name: str, colour: str) -> Figure:
    """The gradients on the left, and what the method makes of them on the right."""
    answer = answer_of(name)
    corners = [*np.cumsum(answer.parts, axis=0)] if answer.parts else []
    reach = reach_of([*GRADIENTS, answer.update, *corners, *answer.others], 0.75)
    figure = sized(reach, 2, 1, 0.55)
    left, right = figure.subplots(1, 2)
    for axes, title in ((left, "two task gradients"), (right, f"what {name} makes of them")):
        prepare(axes, reach)
        shade(axes)
        axes.set_title(title, fontsize=10, color=TEXT)
    draw_gradients(left, 3.2)
    draw_answer(right, answer, colour)
    left.set_xlabel("green ground: updates that make no task worse", fontsize=8, color=MUTED)
    right.set_xlabel(answer.state, fontsize=8, color=MUTED)
    return figure


def draw_grid(names: Sequence[str], colours: Sequence[str]) -> Figure:
    """One small plane per method, with the update alone."""
    answers = [answer_of(name) for name in names]
    reach = reach_of([*GRADIENTS, *(answer.update for answer in answers)], 0.75)
    figure = sized(reach, len(names) // 2, 2, 0.45)
    planes = figure.subplots(2, len(names) // 2)
    for axes, name, answer, colour in zip(planes.flat, names, answers, colours, strict=True):
        prepare(axes, reach)
        shade(axes)
        draw_gradients(axes, 1.8)
        arrow(axes, np.zeros(2), answer.update, colour, 2.6)
        axes.set_title(name.removeprefix("torchjd:"), fontsize=10, color=colour, fontweight="bold")
    return figure


def colour_of(name: str) -> str:
    """The colour of the method in every figure of the project."""
    return (
        COLOURS["torchjd_upgrad"] if name.startswith("torchjd:") else COLOURS[{"equal": "shared_dqn"}.get(name, name)]
    )


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(exist_ok=True)
    names = (*OVERVIEW, "memory", "random")
    aggregators = [f"torchjd:{name}" for name in AGGREGATORS]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtrl", "font.family": ["DejaVu Sans", "sans-serif"]}):
        for name in names:
            save(draw_method(name, colour_of(name)), FOLDER / f"{name}.svg")
        save(draw_grid(OVERVIEW, [*map(colour_of, OVERVIEW)]), FOLDER / "overview.svg")
        save(draw_grid(aggregators, [*map(colour_of, aggregators)]), FOLDER / "torchjd.svg")


if __name__ == "__main__":
    main()
