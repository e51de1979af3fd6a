"""`python -m experiments.studies.original`: the experiments of AIM's document, rebuilt from their description."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.studies.command import StudyConfig, study_command


@dataclass(frozen=True)
class OriginalConfig(StudyConfig):
    """Repeat the two experiments of AIM's document with its sizes, on more seeds and with rows that nobody trained on.

    The policy is trained as the public code does it: the guidance loss has no gradient with respect to tau. The heads
    of the tasks stay as they began, as in the public code, and are trained, as in ordinary multi-task learning.
    """

    steps: int = 100
    """Updates of a training."""

    learning_rate: float = 1e-3
    """Step size of Adam in the sabotage, the same for every method; the mixed signals have five times as much."""

    output_dir: Path = Path("results/analysis/studies/original")
    """Folder for report.md, results.json and the figures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return study_command("experiments.studies.reports.original:study", OriginalConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
