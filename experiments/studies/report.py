"""What a study says: tables with intervals, claims with verdicts that are computed, figures."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from experiments.analysis.plots.style import RC, save
from experiments.analysis.statistics import Comparison, Estimate, compare, summarise
from mtrl.files import replacing

Array = NDArray[np.float64]
Scores = Mapping[str, Mapping[int, ArrayLike]]  # by method and seed, the numbers of a row of the table (K,)

SIGNIFICANT = 0.05

CRITERION = """\
A claim is a number per seed that is above 0 where the claim is right, usually the difference of two methods on the same
data. It **held** if the mean over seeds is above 0 with p < 0.05 in a two-sided paired t-test after Holm's correction
for all claims of this study, and **the opposite held** if it is as surely below 0. Else it was **not shown**."""


@dataclass(frozen=True)
class Claim:
    """Something that the seeds can confirm or contradict."""

    text: str
    margins: Mapping[int, float]  # by seed; above 0 where the claim is right
    robustness: bool = False  # whether the claim is part of "naive low, static medium, AIM high"


@dataclass(frozen=True)
class Verdict:
    """What became of a claim."""

    claim: Claim
    comparison: Comparison

    @property
    def outcome(self) -> str:
        """`held`, `the opposite held`, `not shown`, or `one seed: cannot tell`."""
        p, margin = self.comparison.p_holm, self.comparison.difference.value
        if p is None:
            return "one seed: cannot tell"
        if not p < SIGNIFICANT:
            return "not shown"
        return "held" if margin > 0 else "the opposite held"

    @property
    def held(self) -> bool:
        """Whether it held."""
        return self.outcome == "held"


def judge(claims: Sequence[Claim]) -> list[Verdict]:
    """The verdict on each claim; see `CRITERION`."""
    margins = {claim.text: {seed: [margin] for seed, margin in claim.margins.items()} for claim in claims}
    nothing = {seed: [0.0] for claim in claims for seed in claim.margins}
    comparisons = compare(margins, nothing)
    return [Verdict(claim, comparisons[claim.text]) for claim in claims]


def lower(text: str, better: Mapping[int, float], worse: Mapping[int, float], *, robustness: bool = False) -> Claim:
    """The claim that the first method's score, lower is better, is below the second's."""
    return Claim(text, {seed: worse[seed] - better[seed] for seed in better}, robustness)


@dataclass(frozen=True)
class Table:
    """Methods by numbers; means over seeds with 95 % intervals."""

    title: str
    columns: tuple[str, ...]  # (K,)
    scores: Scores

    @property
    def markdown(self) -> str:
        """As a Markdown table."""
        lines = [["method", *self.columns], ["---"] * (len(self.columns) + 1)]
        for method, by_seed in self.scores.items():
            matrix = np.array([by_seed[seed] for seed in by_seed], float)  # (seeds, K)
            cells = []
            for column in matrix.T:
                known = not np.isnan(column).any()
                cells.append(cell(summarise(column[:, None]).overall) if known else "-")
            lines.append([method, *cells])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(estimate: Estimate, form: str = ".3f") -> str:
    """The value, and its interval where there is one."""
    if estimate.interval is None:
        return f"{estimate.value:{form}}"
    low, high = estimate.interval
    return f"{estimate.value:{form}} [{low:{form}}, {high:{form}}]"


@dataclass(frozen=True)
class Report:
    """A study's results."""

    title: str
    setting: str  # what was done, in a paragraph
    settings: Mapping[str, Any]
    tables: Sequence[Table]
    verdicts: Sequence[Verdict]
    figures: Mapping[str, Figure] = field(repr=False)

    @property
    def robustness(self) -> str:
        """What became of "robustness: naive low, static medium, AIM high", out of the claims that it consists of."""
        parts = [verdict for verdict in self.verdicts if verdict.claim.robustness]
        held = sum(verdict.held for verdict in parts)
        if any(verdict.comparison.p is None for verdict in parts):
            answer = "one seed: cannot tell"
        elif held == len(parts):
            answer = "held"
        else:
            answer = f"held in part ({held} of {len(parts)} claims)" if held else "did not hold"
        return f"Robustness naive low, static medium, AIM high (claims marked *): {answer}."

    @property
    def markdown(self) -> str:
        """The contents of report.md."""
        parts = [f"# {self.title}", self.setting]
        for table in self.tables:
            parts += [f"## {table.title}", table.markdown]
        parts += ["## Claims", CRITERION, self.verdict_table, f"**{self.robustness}**"]
        return "\n\n".join(parts) + "\n"

    @property
    def verdict_table(self) -> str:
        """Claims and what became of them, as a Markdown table."""
        lines = ["| claim | mean margin | p (Holm) | verdict |", "| --- | --- | --- | --- |"]
        for verdict in self.verdicts:
            mark = " *" if verdict.claim.robustness else ""
            p = verdict.comparison.p_holm
            margin = cell(verdict.comparison.difference, "+.3f")
            lines.append(
                f"| {verdict.claim.text}{mark} | {margin} | {'-' if p is None else f'{p:.3f}'} | {verdict.outcome} |"
            )
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Leave report.md, results.json (every seed's numbers) and a PNG per figure in `folder`."""
        for name, figure in self.figures.items():
            with mpl.rc_context(RC):
                save(figure, folder / f"{name}.png")
        numbers = {
            table.title: {
                method: {str(seed): [_json(value) for value in np.asarray(row, float)] for seed, row in by_seed.items()}
                for method, by_seed in table.scores.items()
            }
            for table in self.tables
        }
        results = {
            "settings": dict(self.settings),
            "versions": {
                "python": platform.python_version(),
                **{package: importlib.metadata.version(package) for package in ("mtrl", "torch", "numpy")},
            },
            "columns": {table.title: list(table.columns) for table in self.tables},
            "numbers": numbers,
            "verdicts": {verdict.claim.text: verdict.outcome for verdict in self.verdicts},
            "robustness": self.robustness,
        }
        with replacing(folder / "results.json") as file:
            file.write(f"{json.dumps(results, indent=1, allow_nan=False)}\n".encode())
        with replacing(folder / "report.md") as file:
            file.write(self.markdown.encode())


def _json(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
