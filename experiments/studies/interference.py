"""`python -m experiments.studies.interference`: conflicting gradients, and negative transfer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.studies.command import StudyConfig, study_command


@dataclass(frozen=True)
class InterferenceConfig(StudyConfig):
    """Show what conflicting gradients do: the direction of each method's update, and the cost of a shared backbone."""

    steps: int = 200
    """Updates of a training."""

    output_dir: Path = Path("results/analysis/studies/interference")
    """Folder for report.md, results.json and the figures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return study_command("experiments.studies.reports.interference:study", InterferenceConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
