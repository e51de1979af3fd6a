"""Figures of what AIM learned: its thresholds at the end, over seeds, and while it learned them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from experiments.analysis.looks import DIVERGING, task_look
from experiments.analysis.plots.style import RC, grid_of_panels
from experiments.studies.fitting import Fit

Array = NDArray[np.float64]

GATE_NOTE = "the diagonal holds the gates: 1 lets half of a gradient pass, below 0.7 nearly all, above 1.3 hardly any"


def learned(fits: Mapping[str, Mapping[int, Fit]]) -> dict[str, list[Fit]]:
    """The trainings of the methods that learn thresholds, by method."""
    kept = {method: [fit for fit in of.values() if fit.tau is not None] for method, of in fits.items()}
    return {method: of for method, of in kept.items() if of}


def thresholds(fits: Mapping[str, Iterable[Fit]], names: Sequence[str], title: str) -> Figure:
    """Thresholds tau at the end of training: the mean over seeds as a colour from -1 to 1, mean and deviation in words.

    Args:
        fits: the trainings by method, all of which learn thresholds. A method without gates has an empty diagonal.
        names: the names of the tasks (T,).
        title: what the tasks are.
    """
    with mpl.rc_context(RC):
        width = 1.0 + 0.62 * len(names)
        figure = Figure(figsize=(1.6 + width * len(fits), 2.2 + 0.62 * len(names)), layout="constrained")
        panels = grid_of_panels(figure, len(fits), len(fits))
        image = None
        for axes, (method, of) in zip(panels, fits.items(), strict=True):
            taus = np.stack([fit.tau for fit in of if fit.tau is not None])
            mean, deviation = taus.mean(0), taus.std(0, ddof=1) if len(taus) > 1 else np.zeros(taus.shape[1:])
            if not mean.diagonal().any():
                mean[np.diag_indices_from(mean)] = np.nan
            image = axes.imshow(mean, cmap=DIVERGING, vmin=-1, vmax=1)
            for (i, j), value in np.ndenumerate(mean):
                if np.isfinite(value):
                    shade = "white" if abs(value) > 0.6 else "black"
                    words = f"{value:.2f}\n±{deviation[i, j]:.2f}"
                    axes.text(j, i, words, ha="center", va="center", color=shade, fontsize="x-small")
            axes.set_xticks(range(len(names)), list(names), rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(names)), list(names))
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set(title=f"{method} ({len(taus)} seeds)", xlabel="... along the gradient of")
        panels[0].set_ylabel("removes from the gradient of ...")
        if image is not None:
            figure.colorbar(image, ax=panels, label="tau: removes below this cosine", extend="both", shrink=0.8)
        gates = any(fit.tau is not None and fit.tau.diagonal().any() for of in fits.values() for fit in of)
        figure.suptitle(f"{title}: learned thresholds, mean ± deviation over seeds" + f"\n({GATE_NOTE})" * gates)
    return figure


def threshold_curves(fits: Mapping[str, Iterable[Fit]], names: Sequence[str], title: str) -> Figure:
    """Thresholds while they are learned, means over seeds: of each pair a thin line, of each gate a thick one.

    A line has the colour of the task whose gradient is changed. The arguments are those of `thresholds`.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(1.6 + 3.4 * len(fits), 3.2), layout="constrained")
        panels = grid_of_panels(figure, len(fits), len(fits))
        for axes, (method, of) in zip(panels, fits.items(), strict=True):
            _draw_curves(axes, [fit for fit in of if fit.taus is not None], len(names))
            axes.set(title=method, xlabel="updates")
        panels[0].set_ylabel("tau")
        handles = [Line2D([], [], color=task_look(i).colour, label=f"of {name}") for i, name in enumerate(names)]
        handles += [
            Line2D([], [], color="0.4", linewidth=0.8, label="pair"),
            Line2D([], [], color="0.4", linewidth=2.4, label="gate"),
        ]
        figure.legend(handles=handles, loc="outside right upper")
        figure.suptitle(f"{title}: thresholds during training, means over seeds")
    return figure


def _draw_curves(axes: Axes, fits: Sequence[Fit], num_tasks: int) -> None:
    if not fits:
        return
    taus = np.mean([fit.taus for fit in fits if fit.taus is not None], 0)  # (P, T, T)
    for i in range(num_tasks):
        for j in range(num_tasks):
            if i != j:
                axes.plot(fits[0].steps, taus[:, i, j], color=task_look(i).colour, linewidth=0.8, alpha=0.7)
            elif taus[:, i, i].any():
                axes.plot(fits[0].steps, taus[:, i, i], color=task_look(i).colour, linewidth=2.4)
    axes.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
