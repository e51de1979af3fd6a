"""The paths of all balancers through the toy problem, and the report on them."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.analysis.looks import TASK_COLOURS
from experiments.analysis.markdown import table
from experiments.analysis.plots.style import RC, grid_of_panels
from experiments.program.figures import save
from experiments.program.flags import UsageError
from experiments.program.terminal import progress
from experiments.program.versions import versions
from experiments.studies.command import refuse_existing, writing
from experiments.studies.toy import ToyConfig
from experiments.studies.toy_problem import LOWER_BOUND, STARTS, Array, Pair, ParetoSet, Toy
from mtrl.balancers import Balancer, make_balancer, names
from mtrl.files import replacing
from mtrl.gradients import TaskGradients

PREFIX = "torchjd:"
THEIRS = tuple(f"{PREFIX}{name}" for name in ("UPGrad", "MGDA", "CAGrad", "NashMTL", "IMTLG", "AlignedMTL"))
OPTIONS: dict[str, dict[str, Any]] = {f"{PREFIX}CAGrad": {"c": 0.5}}  # as in CAGrad's own toy experiment
SETTLED = 2000  # a path ends so many updates after it has reached the front
FARTHEST = 1e6  # a parameter beyond this has left the plane
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's defaults
NEARLY = 0.2  # a hundredth of the losses' range over the Pareto set
PANELS = 5  # side by side

SETTING = """\
Two losses of two parameters from CAGrad (Liu et al. 2021), the first one multiplied by {scale}, and the five starts of
Nash-MTL (Navon et al. 2022, Figure 1 and appendix B): {steps:,} updates by Adam at {learning_rate}. In the upper half
plane each loss has a narrow ravine, in which the gradient of one task is very large; in the lower half plane both are
parabolas. The second loss has the sign of tanh that {source}.

A path has **reached the front** when it comes within {tolerance} of the Pareto set in the plane of the parameters, and
it ends {settled:,} updates later. The balancers have their own defaults, and `torchjd:CAGrad` has c = 0.5. AIM learns
without a guidance loss, as the problem has no held-out data. GradNorm and AIM look at the size of the losses, which
must be at least 0: they see each loss minus its lower bound ({first_bound:g} and {bound:g}).{hold} In the ravines a
path depends on rounding: another machine may give other numbers, and another answer where one is close."""

HOLD = """ TorchJD's
balancers compute their weights at every {hold}th update and keep them in between, as Nash-MTL-50 does in its paper;
`--hold 1` computes them at every update."""


@dataclass(frozen=True)
class Path2D:
    """The way of one balancer from one start."""

    points: Array  # (P + 1, 2): the start, and the point after each update
    arrived: int | None  # the number of updates after which the front was reached


def descend(balancer: Balancer, start: Pair, toy: Toy, front: ParetoSet, config: ToyConfig) -> Path2D:
    """Follow the balancer's updates by Adam from `start`.

    Raises:
        FloatingPointError: the path left the plane, or the balancer has no finite answer.
    """
    hold = config.hold if getattr(balancer, "aggregator", None) is not None else 1
    x, y = start
    points, arrived = [start], None
    mean_x = mean_y = square_x = square_y = 0.0
    kept: list[float] | None = None
    for step in range(1, config.num_steps + 1):
        losses, gradients = toy.losses_and_gradients(x, y)
        if kept is None or (step - 1) % hold == 0:
            (to_x, to_y), kept = ask(balancer, losses, gradients, toy)
        else:
            to_x, to_y = (sum(c * g for c, g in zip(kept, row, strict=True)) for row in zip(*gradients, strict=True))
        mean_x, mean_y = BETA1 * mean_x + (1 - BETA1) * to_x, BETA1 * mean_y + (1 - BETA1) * to_y
        square_x, square_y = BETA2 * square_x + (1 - BETA2) * to_x**2, BETA2 * square_y + (1 - BETA2) * to_y**2
        rate, correction = config.learning_rate / (1 - BETA1**step), 1 - BETA2**step
        x -= rate * mean_x / (math.sqrt(square_x / correction) + EPS)
        y -= rate * mean_y / (math.sqrt(square_y / correction) + EPS)
        if not (abs(x) < FARTHEST and abs(y) < FARTHEST):
            raise FloatingPointError(f"the path from {start} left the plane")
        points.append((x, y))
        if arrived is None and y < 0 and front.distance(x, y) <= config.tolerance:
            arrived = step
        if arrived is not None and step - arrived >= SETTLED:
            break
    return Path2D(np.array(points), arrived)


def ask(balancer: Balancer, losses: Pair, gradients: tuple[Pair, Pair], toy: Toy) -> tuple[Pair, list[float] | None]:
    """The balancer's update, and its coefficients if they are all that the update consists of."""
    rows = TaskGradients(torch.tensor(gradients, dtype=torch.float64))
    above_bound = (losses[0] - toy.scale * LOWER_BOUND, losses[1] - LOWER_BOUND)
    with torch.no_grad():
        try:
            answer = balancer(rows, torch.tensor(above_bound, dtype=torch.float64))
        except ValueError as error:
            raise FloatingPointError(str(error)) from error
        x, y = answer.update(rows).tolist()
    return (x, y), None if answer.direction is not None else answer.coefficients.tolist()


def study(config: ToyConfig) -> int:
    """Follow every balancer from every start, write and print the report, return the exit status."""
    refuse_existing(config.output_dir, config.overwrite)
    chosen = list(dict.fromkeys(config.balancers or (*names(), *THEIRS)))
    try:
        for name in chosen:
            make_balancer(name, 2, **OPTIONS.get(name, {}))
    except ValueError as error:
        raise UsageError(str(error)) from error
    torch.set_num_threads(1)  # two threads are slower at these sizes
    toy, front = Toy(config.scale, config.formula), ParetoSet()
    paths: dict[str, list[Path2D]] = {}
    with progress(config.quiet) as bar:
        row = bar.add_task("toy", total=len(chosen) * len(STARTS))
        for name in chosen:
            paths[name] = []
            for start in STARTS:
                try:
                    balancer = make_balancer(name, 2, **OPTIONS.get(name, {}))
                    paths[name].append(descend(balancer, start, toy, front, config))
                except FloatingPointError as error:
                    print(
                        f"experiments.studies.toy: {name}: {error}; a lower --learning-rate may help", file=sys.stderr
                    )
                    return 1
                bar.advance(row)
    text = report(paths, config, toy, front)
    with writing(config.output_dir, config.overwrite):
        write(config, text, paths, toy, front)
    if not config.quiet:
        print(f"\n{text}")
    print(f"results in {config.output_dir}")
    return 0


def gap(path: Path2D, toy: Toy, front: ParetoSet) -> float:
    """How much both losses, before their factors, could still fall together from the end of the path.

    It is the largest number by which a point of the front is lower in both losses, and at most 0 on the front itself.
    """
    factors = (toy.scale, 1.0)
    below = (np.array(toy.losses(*path.points[-1].tolist())) - toy.along(front.points)) / factors
    return float(below.min(1).max())


def report(paths: Mapping[str, Sequence[Path2D]], config: ToyConfig, toy: Toy, front: ParetoSet) -> str:
    """The contents of report.md."""
    starts = [f"({x:g}, {y:g})" for x, y in STARTS]
    held = any(name.startswith(PREFIX) for name in paths) and config.hold > 1
    setting = SETTING.format(
        **config.settings | {"hold": HOLD.format(hold=config.hold) if held else ""},
        source="the authors' programs compute; their papers print the other one"
        if config.formula == "program"
        else "the papers print; the authors' programs compute the other one",
        settled=SETTLED,
        bound=LOWER_BOUND,
        first_bound=config.scale * LOWER_BOUND,
    )
    counts = {name: sum(path.arrived is not None for path in of) for name, of in paths.items()}
    arrivals, ends, gaps, nearly = [], [], [], []
    for name, of in paths.items():
        reached = ["-" if path.arrived is None else f"{path.arrived:,}" for path in of]
        arrivals.append([name, *reached, f"{counts[name]} of {len(STARTS)}"])
        ends.append([name, *(f"({x:.2f}, {y:.2f})" for x, y in (path.points[-1] for path in of))])
        left = [max(gap(path, toy, front), 0.0) for path in of]
        gaps.append([name, *(f"{each:.3f}" for each in left)])
        nearly += [
            f"{name} from {start}"
            for start, path, each in zip(starts, of, left, strict=True)
            if path.arrived is None and each <= NEARLY
        ]
    by_count = [
        f"- from {count} of {len(STARTS)} starts: {', '.join(name for name, own in counts.items() if own == count)}"
        for count in sorted(set(counts.values()), reverse=True)
    ]
    parts = [
        "# Toy: two losses, five starts, who reaches the Pareto front",
        *(textwrap.fill(paragraph, 120) for paragraph in setting.split("\n\n")),
        "## Updates until the front is reached, by start",
        table(["balancer", *starts, "reached"], arrivals),
        "The front is reached\n\n" + "\n".join(by_count),
        "## Where the paths end",
        table(["balancer", *starts], ends),
        "## How much both losses could still fall together at the end",
        f"Before their factors; over the Pareto set each loss runs through {-LOWER_BOUND:g}.",
        table(["balancer", *starts], gaps),
        f"Some paths end more than {config.tolerance:g} away from the Pareto set and have at most {NEARLY:g} left to"
        " fall, a hundredth of that range,\nbecause the valley is nearly flat along θ₂:\n\n"
        + ("\n".join(f"- {path}" for path in nearly) or "- none"),
    ]
    return "\n\n".join(parts) + "\n"


def write(config: ToyConfig, text: str, paths: Mapping[str, Sequence[Path2D]], toy: Toy, front: ParetoSet) -> None:
    """Leave the figures, results.json and report.md in the output folder."""
    folder: Path = config.output_dir
    with mpl.rc_context(RC):
        save(paths_figure(paths, toy, front), folder / "paths.png")
        save(losses_figure(paths, toy, front), folder / "losses.png")
    numbers = {
        name: [
            {
                "start": list(start),
                "arrived": path.arrived,
                "updates": len(path.points) - 1,
                "end": path.points[-1].tolist(),
                "losses": list(toy.losses(*path.points[-1].tolist())),
                "gap": gap(path, toy, front),
            }
            for start, path in zip(STARTS, of, strict=True)
        ]
        for name, of in paths.items()
    }
    packages = ["mtrl", "torch", "numpy"] + ["torchjd"] * any(name.startswith(PREFIX) for name in paths)
    results = {
        "settings": config.settings,
        "versions": versions(*packages),
        "paths": numbers,
    }
    with replacing(folder / "results.json") as file:
        file.write(f"{json.dumps(results, indent=1, allow_nan=False)}\n".encode())
    with replacing(folder / "report.md") as file:
        file.write(text.encode())


def paths_figure(paths: Mapping[str, Sequence[Path2D]], toy: Toy, front: ParetoSet) -> Figure:
    """Every path in the plane of the parameters, over the mean of the two losses before their factors."""
    figure, panels = figure_of(paths)
    xs = ys = np.linspace(-11, 11, 160)
    height = Toy(1.0, toy.formula).grid(xs, ys).mean(0)
    for axes, of in zip(panels, paths.values(), strict=True):
        axes.contour(xs, ys, height, levels=12, colors="0.8", linewidths=0.6, linestyles="-")
        axes.plot(*front.points.T, color="0.35", linewidth=4, solid_capstyle="butt", alpha=0.6)
        draw(axes, [path.points for path in of], [path.arrived is not None for path in of])
        axes.set(xlim=(-11, 11), ylim=(-11, 11), aspect="equal", xlabel="θ₁", ylabel="θ₂")
        axes.label_outer()
    figure.suptitle("Dot: start. Star: reached the Pareto set (grey bar). Cross: did not. Lines: mean of both losses")
    return figure


def losses_figure(paths: Mapping[str, Sequence[Path2D]], toy: Toy, front: ParetoSet) -> Figure:
    """Every path in the plane of the two losses."""
    figure, panels = figure_of(paths)
    best = toy.along(front.points)
    for axes, of in zip(panels, paths.values(), strict=True):
        axes.plot(*best.T, color="0.35", linewidth=4, solid_capstyle="butt", alpha=0.6)
        thinned = [toy.along(np.concatenate([path.points[::25], path.points[-1:]])) for path in of]
        draw(axes, thinned, [path.arrived is not None for path in of])
        axes.set(xlabel="first loss", ylabel="second loss")
        axes.label_outer()
    figure.suptitle("The same paths by their losses. Grey bar: the Pareto front")
    return figure


def figure_of(paths: Mapping[str, Sequence[Path2D]]) -> tuple[Figure, list[Any]]:
    """A figure with a panel for each balancer, titled by its name and its number of starts that reached the front."""
    columns = min(PANELS, len(paths))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(0.8 + 1.9 * columns, 0.7 + 2.0 * -(-len(paths) // columns)), layout="constrained")
        panels = grid_of_panels(figure, len(paths), columns, sharex=True, sharey=True)
        for axes, (name, of) in zip(panels, paths.items(), strict=True):
            axes.set_title(f"{name}: {sum(path.arrived is not None for path in of)} of {len(of)}")
    return figure, panels


def draw(axes: Any, lines: Sequence[Array], reached: Sequence[bool]) -> None:
    """Lines (P, 2), each with a dot at its beginning and a star or a cross at its end."""
    for number, (line, there) in enumerate(zip(lines, reached, strict=True)):
        colour = TASK_COLOURS[number % len(TASK_COLOURS)]
        axes.plot(*line.T, color=colour, linewidth=1.1)
        axes.plot(*line[0], "o", color=colour, markersize=5)
        axes.plot(*line[-1], "*" if there else "X", color=colour, markeredgecolor="black", markersize=9, zorder=3)
