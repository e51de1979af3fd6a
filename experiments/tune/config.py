"""Settings of a search; every field is a flag of `python -m experiments.tune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from experiments.program.flags import parse_seeds
from experiments.training.config import Variant
from mtrl.limits import Limits, check_fields

PROG = "experiments.tune"
Count = Annotated[int, Limits(least=1)]


@dataclass(frozen=True)
class TuneConfig:
    """Search the settings of methods by Optuna (extra `tune`), with the same number of trials for each method.

    A trial is one run per seed with settings that the sampler proposes from the method's search space (`search_space`
    in `experiments/<method>/config.py`); the first trial has the defaults. Its score is the mean over seeds and tasks
    of the final greedy episodes. Words after `--` are flags of each run. The search goes on where it was interrupted:
    finished runs are read, unfinished ones continue. It runs through Ray where Ray is installed, and one run at a time
    otherwise.

    For each method, `<results-dir>/<run>/best.json` holds the best settings, for `train --settings FILE` and for
    `sweep --tuned <results-dir>`; `study.json` all trials; `trials.png` a picture of them.
    """

    methods: tuple[str, ...]
    """Names of methods, as `experiments/methods.py` lists them; `torchjd:CAGrad` is `torchjd --aggregator CAGrad`."""

    variant: Variant = "blind"
    """The variant to train; a method without variants has its own."""

    trials: Count = 12
    """Trials of each method."""

    seeds: tuple[str, ...] = ("100", "101")
    """The seeds that a trial is scored on. Report with other seeds than those that you tune on."""

    total_steps: Count = 200_000
    """Environment steps of each run."""

    together: Count = 4
    """Trials that are proposed at once, and may run side by side. It decides which trials are proposed, so that the
    same command gives the same search on any number of cores."""

    sampler_seed: Annotated[int, Limits(least=0, most=2**32 - 1)] = 0
    """Seed of the sampler (Optuna's tree-structured Parzen estimator)."""

    results_dir: Path = Path("results/tuning")
    """The folder of the search. With --address it must be on a file system that all nodes share."""

    address: str | None = None
    """HOST:PORT of a Ray cluster to run on, or `auto`. Default: this machine."""

    max_runs_at_once: Count | None = None
    """The largest number of runs side by side. Default: one per core."""

    dry_run: bool = False
    """State the cost, and write nothing."""

    def __post_init__(self) -> None:
        check_fields(self)
        parse_seeds(self.seeds)
        if not self.methods:
            raise ValueError("methods: there are none; give one or more")
