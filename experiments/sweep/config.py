"""Settings of a sweep; every field is a flag of `python -m experiments.sweep`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from experiments.program.flags import parse_seeds
from experiments.program.weights_and_biases import WandbMode
from experiments.training.config import Variant


@dataclass(frozen=True)
class SweepConfig:
    """Train every method in every variant with every seed, one core each, on this machine or on a Ray cluster.

    Words after `--` are flags of each run: `... --seeds 0-9 -- --total-steps 100000`. Finished runs are skipped. Runs
    that a crash or a lost node interrupts continue from their checkpoints by themselves; after Ctrl-C, the same command
    continues them. A run prints to seed_<k>.log beside its folder. The exit status is 0 if all runs are finished, 1 if
    one failed, 2 if the command is wrong, and 128 + n after signal n.
    """

    methods: tuple[str, ...]
    """Names of methods, as `experiments/methods.py` lists them; `torchjd:CAGrad` is `torchjd --aggregator CAGrad`."""

    variants: tuple[Variant, ...] = ("aware", "blind")
    """The variants to train. A method without variants (independent_dqn) runs once per seed."""

    seeds: tuple[str, ...] = ("0-9",)
    """The seeds to train with: numbers and ranges, such as `0 3 7-9`."""

    results_dir: Path = Path("results/runs")
    """The folder of the runs. With --address it must be on a file system that all nodes share, under the same path."""

    tuned: Path | None = None
    """A folder that `experiments.tune` has written: every run takes `<tuned>/<run>/best.json`, where <run> is the
    method's name with `_blind` for the blind variant. One file for all runs goes after the `--`, as --settings FILE."""

    address: str | None = None
    """HOST:PORT of a Ray cluster to run on, or `auto` for the cluster that this machine is a node of. This machine must
    be one of its nodes, and the project must be installed on all nodes. Default: Ray runs on this machine alone, for as
    long as the sweep lasts."""

    retries: int = 3
    """How often a run that dies is started again."""

    max_runs_at_once: int | None = None
    """The largest number of runs side by side. Default: one per core."""

    wandb: WandbMode = "disabled"
    """Show the runs in Weights & Biases (extra `wandb`); the same as `--wandb` of a run."""

    dry_run: bool = False
    """List the runs and estimate the time; nothing is written."""

    def __post_init__(self) -> None:
        parse_seeds(self.seeds)
        for name, values in (("methods", self.methods), ("variants", self.variants)):
            if not values:
                raise ValueError(f"{name}: there are none; give one or more")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; it must be at least 0")
        if self.max_runs_at_once is not None and self.max_runs_at_once < 1:
            raise ValueError(f"max_runs_at_once is {self.max_runs_at_once}; it must be at least 1")
        if self.address not in (None, "auto") and not re.fullmatch(r"\S+:[0-9]{1,5}", str(self.address)):
            raise ValueError(f"address {self.address!r} is neither HOST:PORT nor auto")
