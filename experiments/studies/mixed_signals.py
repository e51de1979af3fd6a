"""`python -m experiments.studies.mixed_signals`: sentiment and spam. Does each task keep to its own words?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.studies.command import GuidedStudyConfig, study_command


@dataclass(frozen=True)
class MixedSignalsConfig(GuidedStudyConfig):
    """Train classifiers of sentiment and of spam on one backbone, and measure which words each task relies on."""

    steps: int = 200
    """Updates of a training."""

    policy_lr: float = 2e-2
    """Learning rate of AIM's thresholds."""

    output_dir: Path = Path("results/analysis/studies/mixed_signals")
    """Folder for report.md, results.json and the figures."""

    train: int = 170
    """Messages that every method trains on."""

    guidance: int = 30
    """Messages that AIM holds out as its guidance set. All other methods train on them as well."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return study_command("experiments.studies.reports.mixed_signals:study", MixedSignalsConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
