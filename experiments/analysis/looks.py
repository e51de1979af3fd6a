"""How methods and tasks look in every figure, and what its labels and caption say about seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.analysis.arrays import Array
from experiments.analysis.comparison import Analysis
from experiments.analysis.replicates import Curve, Method

# After Paul Tol's muted palette, whose colours can be told apart with any kind of colour vision; those that were too
# pale for a line on white are darker here, so that every contrast is at least 3. Black is for the baseline, and grey
# for agents that share nothing. A method has the same colour in every figure and in both variants.
COLOURS = {
    "shared_dqn": "#000000",
    "gradnorm": "#CC6677",
    "pcgrad": "#117733",
    "gradnorm_pcgrad": "#999933",
    "rgb": "#882255",
    "aim": "#C67B00",
    "brc": "#1E88C0",
    "independent_dqn": "#888888",
    "torchjd_upgrad": "#AA4499",
    "memory": "#332288",
    "normalised": "#2E9686",
    "static": "#661100",
    "random": "#8C6D46",
}
OTHER_COLOURS = ("#4477AA", "#228833", "#9A8A10", "#EE6677")
GREY = "#BBBBBB"  # of methods that are drawn for comparison only
DASHES = ("-", "--", "-.", ":")
TASK_COLOURS = ("#0072B2", "#C28500", "#009E73", "#CC79A7", "#D55E00", "#2A94D0")  # after Okabe and Ito
DIVERGING = "RdBu"  # the colours of cosines in every figure: red at -1, which is conflict, white at 0, blue at 1
FEW_SEEDS = 5  # below this number, curves are drawn with those of single seeds in place of intervals


@dataclass(frozen=True)
class Look:
    """The colour and the dashes of lines; dashes are written as in Matplotlib."""

    colour: str  # #rrggbb
    dashes: str = "-"


def looks_of(families: Iterable[str]) -> dict[str, Look]:
    """The looks of methods by name, without the variant.

    A method of this project has a colour of its own, and the runs of one method with different labels or algorithms
    have its colour and different dashes. Any other method gets a colour by its place in the order.
    """
    colours: dict[str, str] = {}
    found: dict[str, Look] = {}
    for family in dict.fromkeys(families):
        method = family.partition("-")[0].replace("shared_sac", "shared_dqn").removesuffix("_sac")
        others = sum(other not in COLOURS for other in colours)
        colour = colours.setdefault(method, COLOURS.get(method, OTHER_COLOURS[others % len(OTHER_COLOURS)]))
        alike = sum(look.colour == colour for look in found.values())
        found[family] = Look(colour, DASHES[alike % len(DASHES)])
    return found


def task_look(index: int) -> Look:
    """The look of the lines of the task at place `index`."""
    return Look(TASK_COLOURS[index % len(TASK_COLOURS)], DASHES[index // len(TASK_COLOURS) % len(DASHES)])


def short(text: str, longest: int = 36) -> str:
    """A text cut in its middle to a length that has room in a figure; both its ends stay."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"


def thousands(steps: float) -> str:
    """A number of steps in at most three digits: `600k`."""
    return f"{steps / 1000:.3g}k" if steps else "0"


def cosine(value: float) -> str:
    """A cosine, or a threshold of cosines: below -1, which no cosine is below, it is `never`."""
    return "never" if value < -1 else f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def few_seeds(curve: Curve) -> Array | None:
    """The curves of single seeds, (seeds, P), if they are so few that they are drawn in place of an interval."""
    return curve.seeds if curve.seeds is not None and 1 < len(curve.seeds) < FEW_SEEDS else None


def variants(analysis: Analysis) -> dict[str, list[Method]]:
    """The methods of the aware variant and those of the blind variant; a variant without methods is left out."""
    found = {
        "aware": [method for method in analysis.methods if not method.blind],
        "blind": [method for method in analysis.methods if method.blind],
    }
    return {variant: methods for variant, methods in found.items() if methods}


def seeds_note(methods: Sequence[Method]) -> str:
    """How many seeds the methods have, in words."""
    counts = [len(method.runs) for method in methods]
    low, high = min(counts), max(counts)
    if high == 1:
        return "one seed"
    if low == 1:
        return f"up to {high} seeds, some methods one seed"
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"


def mean_note(methods: Sequence[Method]) -> str:
    """What the caption of a figure of means says about seeds and intervals."""
    if all(len(method.runs) == 1 for method in methods):
        return "one seed: no intervals"
    return f"mean over {seeds_note(methods)}, 95 % intervals"


def curves_note(methods: Sequence[Method]) -> str:
    """The same as `mean_note` for a figure of curves, which shows few seeds one by one."""
    counts = [len(method.runs) for method in methods]
    if max(counts) == 1 or min(counts) >= FEW_SEEDS:
        return mean_note(methods)
    each = (
        "thin lines: single seeds"
        if max(counts) < FEW_SEEDS
        else (f"95 % intervals from {FEW_SEEDS} seeds on, thin lines for single seeds below")
    )
    return f"mean over {seeds_note(methods)}; {each}"


def label(method: Method, others: Sequence[Method], name: str | None = None) -> str:
    """The name of a method, with its number of seeds if the methods of the figure have different numbers.

    Args:
        method: the method.
        others: all methods of the figure.
        name: what to call the method. Default: its name, with the variant.
    """
    shown = method.name if name is None else name
    if len({len(other.runs) for other in others}) == 1:
        return shown
    return f"{shown} ({'one seed' if len(method.runs) == 1 else f'{len(method.runs)} seeds'})"
