"""`python -m experiments.studies.document_claims`: every claim of the document, and what the studies found of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.program.command import run
from experiments.program.flags import UsageError

STUDIES = ("interference", "static_heuristics", "sabotage", "mixed_signals", "original")

CLAIMS = {
    "harm": "conflicting gradients can harm individual tasks",
    "negative transfer": "training tasks together can cost accuracy (negative transfer)",
    "static helps": "a static, PCGrad-like rule succeeds on conflicts of direction",
    "static early": "a static rule helps early in training",
    "static late": "a static rule hinders later, when the relations of tasks change",
    "noise harms": "naive training is vulnerable to a noisy task (robustness low)",
    "static medium": "a static rule is more robust than naive training (robustness medium)",
    "resolves": "AIM resolves the interference of gradients",
    "prevents": "AIM prevents negative transfer",
    "adapts": "AIM learns thresholds where a static rule is rigid",
    "protects": "AIM prevents the noisy task from corrupting the shared backbone",
    "quarantines": "AIM quarantines the noisy task",
    "strict": "tau shows which tasks AIM is strict about: the noisy one",
    "lanes": "AIM keeps sentiment and spam in their lanes",
    "confusion": "AIM avoids the confusion of features",
    "high": "AIM is more robust than a static rule (robustness high)",
}
"""The claims of the document in this project's words, by the keys that `report.Claim.document` holds."""


@dataclass(frozen=True)
class DocumentClaimsConfig:
    """Print the claims of the document that AIM's studies test, with what was found, as a table in Markdown.

    It reads the results.json that each study wrote, and trains nothing.
    """

    studies_dir: Path = Path("results/studies")
    """The folder that holds a folder of results for each study."""


def table_of(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown, from the contents of each study's results.json by the study's name."""
    lines = [
        "| the document says | tested as (study) | about | mean margin [95 % interval] | p (Holm) | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, said in CLAIMS.items():
        for study, result in results.items():
            for verdict in result["verdicts"]:
                if verdict["document"] == key:
                    cells = (said, f"{verdict['claim']} ({study})", verdict["about"] or "-", *_numbers(verdict))
                    lines.append(f"| {' | '.join(cells)} | {verdict['outcome']} |")
    return "\n".join(lines)


def _numbers(verdict: Mapping[str, Any]) -> tuple[str, str]:
    """The margin with its interval, and p."""
    margin, interval, p = f"{verdict['margin']:+.3f}", verdict["interval"], verdict["p_holm"]
    if interval is not None:
        margin += f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    return margin, "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def load(folder: Path) -> dict[str, Any]:
    """The contents of the results.json of every study in the folder that has one, by the study's name.

    Raises:
        UsageError: there is none, or one cannot be read.
    """
    found = {}
    for study in STUDIES:
        path = folder / study / "results.json"
        if path.exists():
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
                if any("document" not in verdict for verdict in result["verdicts"]):
                    raise ValueError("its claims do not say what they test")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UsageError(f"'{path}' is no result of a study: {error}") from None
            found[study] = result
    if not found:
        raise UsageError(f"'{folder}' holds no results of {', '.join(STUDIES)}")
    return found


def print_claims(config: DocumentClaimsConfig) -> int:
    """Print the table and return the exit status."""
    print(table_of(load(config.studies_dir)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    return run(print_claims, DocumentClaimsConfig, argv, prog="experiments.studies.document_claims")


if __name__ == "__main__":
    sys.exit(main())
