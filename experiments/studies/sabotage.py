"""`python -m experiments.studies.sabotage`: four regressions and a task of pure noise. Is the noise quarantined?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.studies.command import GuidedStudyConfig, study_command


@dataclass(frozen=True)
class SabotageConfig(GuidedStudyConfig):
    """Train four regressions beside a task of pure noise, and see which methods let it shape the shared backbone."""

    seeds: tuple[str, ...] = ("0-29",)
    """Seeds and ranges of seeds, such as `0-9` or `3 5 8-10`. For one seed, every method gets the same data, the same
    first weights and the same number of updates."""

    policy_lr: float = 5e-2
    """Learning rate of AIM's thresholds."""

    output_dir: Path = Path("results/analysis/studies/sabotage")
    """Folder for report.md, results.json and the figures."""

    train: int = 480
    """Rows that every method trains on."""

    guidance: int = 48
    """Rows that AIM holds out as its guidance set. All other methods train on them as well."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return the exit status."""
    return study_command("experiments.studies.reports.sabotage:study", SabotageConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
