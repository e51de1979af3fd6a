"""The report of a study: tables with intervals, claims with computed verdicts, and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from experiments.analysis.intervals import Estimate, summarise
from experiments.analysis.markdown import cell, number, table
from experiments.analysis.plots.style import RC
from experiments.analysis.significance import Comparison, compare
from experiments.program.figures import save
from experiments.program.versions import versions
from mtrl.files import replacing

Array = NDArray[np.float64]
Scores = Mapping[str, Mapping[int, ArrayLike]]  # by method and seed, the numbers of a row of the table (K,)

SIGNIFICANT = 0.05
SMALLEST_P = 0.001  # that is printed

CRITERION = """\
A claim is a number per seed that is above 0 where the claim is right, usually the difference of two methods on the same
data. It **held** if the mean over seeds is above 0 with p < 0.05 in a two-sided paired t-test after Holm's correction
for all claims of this study, and **the opposite held** if it is as surely below 0. Else it was **not shown**. Margins
have 95 % intervals, which are of each claim alone. The trainings are in float64 with one thread, so that the same seeds
give the same verdicts again."""


@dataclass(frozen=True)
class Claim:
    """A statement that the results over seeds can confirm or contradict."""

    text: str
    margins: Mapping[int, float]  # for each seed, a number that is above 0 if the claim is right
    robustness: bool = False  # whether the claim is part of "naive low, static medium, AIM high"
    method: str = ""  # the kind of AIM that the claim is about; empty if it is about none
    document: str = ""  # a key of `document_claims.CLAIMS` if the claim tests what the document says


@dataclass(frozen=True)
class Verdict:
    """A claim and its test."""

    claim: Claim
    comparison: Comparison

    @property
    def outcome(self) -> str:
        """One of `held`, `the opposite held`, `not shown`, and `one seed: cannot tell`. See `CRITERION`."""
        p, margin = self.comparison.p_holm, self.comparison.difference.value
        if p is None:
            return "one seed: cannot tell"
        if not p < SIGNIFICANT:
            return "not shown"
        return "held" if margin > 0 else "the opposite held"

    @property
    def held(self) -> bool:
        """Whether the claim held."""
        return self.outcome == "held"

    @property
    def record(self) -> dict[str, Any]:
        """As it stands in results.json."""
        difference, claim = self.comparison.difference, self.claim
        return {
            "claim": claim.text,
            "about": claim.method,
            "document": claim.document,
            "outcome": self.outcome,
            "margin": difference.value,
            "interval": None if difference.interval is None else list(difference.interval),
            "p_holm": self.comparison.p_holm,
            "seeds": len(claim.margins),
        }


def judge(claims: Sequence[Claim]) -> list[Verdict]:
    """The verdict on each claim; see `CRITERION`."""
    margins = {claim.text: {seed: [margin] for seed, margin in claim.margins.items()} for claim in claims}
    nothing = {seed: [0.0] for claim in claims for seed in claim.margins}
    comparisons = compare(margins, nothing)
    return [Verdict(claim, comparisons[claim.text]) for claim in claims]


def lower(text: str, better: Mapping[int, float], worse: Mapping[int, float], **of_claim: Any) -> Claim:
    """The claim that the scores `better` are below the scores `worse`. Both are given by seed; lower is better.

    `of_claim` are further arguments of `Claim`.
    """
    return Claim(text, {seed: worse[seed] - better[seed] for seed in better}, **of_claim)


def p_in_words(p: float | None) -> str:
    """A p-value with three decimals, `< 0.001` below that, and `-` if there is none."""
    return "< 0.001" if p is not None and p < SMALLEST_P else number(p, "{:.3f}")


@dataclass(frozen=True)
class Table:
    """Methods by numbers; means over seeds with 95 % intervals."""

    title: str
    columns: tuple[str, ...]  # (K,)
    scores: Scores

    @property
    def markdown(self) -> str:
        """As a Markdown table."""
        rows = []
        for method, by_seed in self.scores.items():
            columns = np.array(list(by_seed.values()), float).T  # (K, seeds)
            rows.append([method, *(cell(_mean(column), "{:.3f}") for column in columns)])
        return table(["method", *self.columns], rows)


def _mean(scores: Array) -> Estimate | None:
    """The mean over seeds of (seeds,) scores, or None if one of them is missing (NaN)."""
    return None if np.isnan(scores).any() else summarise(scores[:, None]).overall


@dataclass(frozen=True)
class Report:
    """The results of a study."""

    title: str
    setting: str  # a description of the study in a few paragraphs
    settings: Mapping[str, Any]
    tables: Sequence[Table]
    verdicts: Sequence[Verdict]
    figures: Mapping[str, Figure] = field(repr=False)
    findings: Sequence[str] = ()  # sentences that follow the tables

    @property
    def robustness(self) -> str:
        """The verdict on "robustness: naive low, static medium, AIM high", from the claims that are part of it.

        It is given for each kind of AIM that a claim is about.
        """
        parts = [verdict for verdict in self.verdicts if verdict.claim.robustness]
        kinds = list(dict.fromkeys(verdict.claim.method for verdict in parts if verdict.claim.method))
        answers = [
            f"{kind}: {self._robust([verdict for verdict in parts if verdict.claim.method in ('', kind)])}"
            for kind in kinds
        ] or [self._robust(parts)]
        return f"Robustness naive low, static medium, AIM high (claims marked *): {'; '.join(answers)}."

    @staticmethod
    def _robust(parts: Sequence[Verdict]) -> str:
        held = sum(verdict.held for verdict in parts)
        if any(verdict.comparison.p is None for verdict in parts):
            return "one seed: cannot tell"
        if held == len(parts):
            return "held"
        return f"held in part ({held} of {len(parts)} claims)" if held else "did not hold"

    @property
    def markdown(self) -> str:
        """The contents of report.md."""
        parts = [f"# {self.title}", self.setting]
        for numbers in self.tables:
            parts += [f"## {numbers.title}", numbers.markdown]
        parts += [*self.findings, "## Claims", CRITERION, self.verdict_table]
        if any(verdict.claim.robustness for verdict in self.verdicts):
            parts.append(f"**{self.robustness}**")
        return "\n\n".join(parts) + "\n"

    @property
    def verdict_table(self) -> str:
        """Claims and what became of them, as a Markdown table."""
        rows = []
        for verdict in self.verdicts:
            claim = f"{verdict.claim.text} *" if verdict.claim.robustness else verdict.claim.text
            margin = cell(verdict.comparison.difference, "{:+.3f}")
            rows.append([claim, margin, p_in_words(verdict.comparison.p_holm), verdict.outcome])
        return table(["claim", "mean margin", "p (Holm)", "verdict"], rows)

    def write(self, folder: Path) -> None:
        """Write report.md, results.json with every seed's numbers, and one PNG per figure to `folder`."""
        for name, figure in self.figures.items():
            with mpl.rc_context(RC):
                save(figure, folder / f"{name}.png")
        numbers = {
            each.title: {
                method: {str(seed): [_json(value) for value in np.asarray(row, float)] for seed, row in by_seed.items()}
                for method, by_seed in each.scores.items()
            }
            for each in self.tables
        }
        results = {
            "settings": dict(self.settings),
            "versions": versions("mtrl", "torch", "numpy"),
            "columns": {each.title: list(each.columns) for each in self.tables},
            "numbers": numbers,
            "findings": list(self.findings),
            "verdicts": [verdict.record for verdict in self.verdicts],
            "robustness": self.robustness,
        }
        with replacing(folder / "results.json") as file:
            file.write(f"{json.dumps(results, indent=1, allow_nan=False)}\n".encode())
        with replacing(folder / "report.md") as file:
            file.write(self.markdown.encode())


def _json(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
