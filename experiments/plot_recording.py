"""`python -m experiments.plot_recording`: figures of what an `mtrl.Recorder`, or one training run, has recorded."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.analysis.config import PlotRecordingConfig
from experiments.program.command import run


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and return the exit status."""
    address = "experiments.analysis.plot_recording:plot"
    return run(address, PlotRecordingConfig, argv, prog="experiments.plot_recording")


if __name__ == "__main__":
    sys.exit(main())
