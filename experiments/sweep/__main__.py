"""`python -m experiments.sweep --methods gradnorm pcgrad --seeds 0-9`: many runs side by side, through Ray."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from experiments.program.command import run
from experiments.program.flags import UsageError, parse_seeds
from experiments.program.stopping import StopSignal, StopSignals
from experiments.program.weights_and_biases import WandbMode
from experiments.training.config import Variant

if TYPE_CHECKING:
    from experiments.sweep.grid import PlannedRun

PROG = "experiments.sweep"


@dataclass(frozen=True)
class SweepConfig:
    """Train every method in every variant with every seed, one core each, on this machine or on a Ray cluster.

    Words after `--` are flags of each run: `... --seeds 0-9 -- --total-steps 100000`. Finished runs are skipped, and
    those that a crash, a lost node or Ctrl-C interrupted continue from their checkpoints, by themselves or with the
    same command. What a run prints goes to seed_<k>.log beside its folder. The exit status is 0 if all runs are
    finished, 1 if one failed, 2 if the command is wrong, and 128 + n after signal n.
    """

    methods: tuple[str, ...]
    """Which: any package of `experiments` that trains; `torchjd:CAGrad` is `torchjd --aggregator CAGrad`."""

    variants: tuple[Variant, ...] = ("aware", "blind")
    """In which variants. A method that has none (independent_dqn) runs once per seed."""

    seeds: tuple[str, ...] = ("0-9",)
    """With which seeds: numbers and ranges, such as `0 3 7-9`."""

    results_dir: Path = Path("results/runs")
    """Where the runs go. With --address: on a file system that all nodes share, under the same path."""

    address: str | None = None
    """HOST:PORT of a Ray cluster to run on, or `auto` for the one that this machine is a node of. This machine must be
    one of its nodes, and the project installed on all of them. Default: an instance of this sweep's own."""

    retries: int = 3
    """How often a run that dies is started again."""

    max_runs_at_once: int | None = None
    """Most runs side by side. Default: one per core."""

    wandb: WandbMode = "disabled"
    """Show the runs in Weights & Biases (extra `wandb`), as with this flag of a run."""

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


def sweep(config: SweepConfig, train_flags: Sequence[str]) -> int:
    """Run the grid; returns the exit status.

    Args:
        config: what runs, and where.
        train_flags: flags of each run.

    Raises:
        UsageError: something can't be carried out; nothing has been started then.
    """
    from experiments.sweep import grid  # noqa: PLC0415 - `--help` is there first
    from experiments.sweep.cluster import import_ray  # noqa: PLC0415

    if config.results_dir.exists() and not config.results_dir.is_dir():
        raise UsageError(f"'{config.results_dir}' is a file; results need a folder")
    if config.wandb != "disabled":
        train_flags = ("--wandb", config.wandb, *train_flags)
    seeds = parse_seeds(config.seeds)
    runs = grid.plan(config.methods, config.variants, seeds, config.results_dir, train_flags, PROG)
    if not config.dry_run or config.address is not None:
        import_ray()
    _check(runs)
    return _estimate(config, runs) if config.dry_run else _run(config, runs)


def _check(runs: Sequence[PlannedRun]) -> None:
    """Find what can't be carried out before anything is started.

    Raises:
        UsageError: a run's settings are wrong, or not those of the run that is there.
    """
    # torch comes with them, and takes seconds.
    from experiments.program.weights_and_biases import check_wandb  # noqa: PLC0415
    from experiments.sweep.grid import refuse_other_settings  # noqa: PLC0415
    from experiments.sweep.trial import make_agent  # noqa: PLC0415
    from experiments.training.checkpoints import FREE_SETTINGS  # noqa: PLC0415

    refuse_other_settings(runs, FREE_SETTINGS)
    check_wandb(runs[0].config.wandb)
    # One run of each kind, with the largest seed: others differ in nothing that could be wrong.
    for run_ in {run_.config.run_name: run_ for run_ in sorted(runs, key=lambda run_: run_.config.seed)}.values():
        try:
            with make_agent(run_.config):
                pass
        except ValueError as error:
            raise UsageError(f"{run_.config.run_method}: {error}") from error


def _estimate(config: SweepConfig, runs: Sequence[PlannedRun]) -> int:
    """List the runs and the time that they will take."""
    from experiments.sweep.cluster import cluster, cores  # noqa: PLC0415 - as above
    from experiments.sweep.estimate import describe  # noqa: PLC0415

    with nullcontext(cores()) if config.address is None else cluster(config.address) as there:
        slots = max(min(there, config.max_runs_at_once or there), 1)
    for line in describe(runs, slots):
        print(line, flush=True)
    return 0


def _run(config: SweepConfig, runs: Sequence[PlannedRun]) -> int:
    """Carry the runs out and say which failed."""
    from experiments.sweep.cluster import check_nodes, cluster  # noqa: PLC0415 - as above
    from experiments.sweep.dispatch import dispatch  # noqa: PLC0415
    from experiments.sweep.jobs import Job, State  # noqa: PLC0415
    from experiments.sweep.view import SweepView  # noqa: PLC0415

    jobs = [Job.of(run) for run in runs]
    if all(job.state is State.SKIPPED for job in jobs):
        print(f"all {len(jobs)} runs are finished")
        return 0
    view = SweepView(jobs, Console(file=sys.stdout))
    try:
        with cluster(config.address) as there, StopSignals() as signals, view:
            config.results_dir.mkdir(parents=True, exist_ok=True)
            check_nodes(config.results_dir.absolute())
            view.say(f"{sum(job.state is State.WAITING for job in jobs)} runs, on {there} cores")
            dispatch(jobs, config.max_runs_at_once, config.retries, view, signals)
    except StopSignal as stop:
        print(f"{PROG}: stopped by {stop}; the same command goes on", file=sys.stderr)
        return stop.status
    view.say(view.summary())
    failed = [job for job in jobs if job.state is State.FAILED]
    for job in failed:
        print(f"{PROG}: {job.run.name} failed: {job.problem} (see '{job.run.log}')", file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep and return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    cut = words.index("--") if "--" in words else len(words)
    return run(lambda config: sweep(config, words[cut + 1 :]), SweepConfig, words[:cut], prog=PROG)


if __name__ == "__main__":
    sys.exit(main())
