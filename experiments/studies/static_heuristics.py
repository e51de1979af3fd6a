"""`python -m experiments.studies.static_heuristics`: where a fixed projection rule helps, and where it gets stuck."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.studies.command import StudyConfig, study_command


@dataclass(frozen=True)
class StaticHeuristicsConfig(StudyConfig):
    """Test a fixed projection rule on a problem where it helps, and on tasks whose relation changes over time."""

    output_dir: Path = Path("results/analysis/studies/static_heuristics")
    """Folder for report.md, results.json and the figures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return study_command("experiments.studies.reports.static_heuristics:study", StaticHeuristicsConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
