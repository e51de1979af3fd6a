"""Carries a sweep out, or estimates how long it will take."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from experiments.program.flags import UsageError, parse_seeds
from experiments.program.outputs import check_folder
from experiments.program.stopping import StopSignal, StopSignals
from experiments.program.terminal import console
from experiments.program.weights_and_biases import check_wandb
from experiments.sweep.cluster import check_nodes, cluster, cores, import_ray
from experiments.sweep.config import SweepConfig
from experiments.sweep.dispatch import dispatch
from experiments.sweep.estimate import describe
from experiments.sweep.grid import PlannedRun, plan, refuse_other_settings
from experiments.sweep.jobs import Job, State
from experiments.sweep.view import SweepView
from experiments.training.make_agent import make_agent

PROG = "experiments.sweep"


def sweep(config: SweepConfig, train_flags: Sequence[str]) -> int:
    """Train every method in every variant with every seed, and return the exit status.

    Args:
        config: which runs, and where they run.
        train_flags: flags of each run.

    Raises:
        UsageError: the sweep cannot be carried out; no run has been started.
    """
    check_folder(config.results_dir)
    if config.wandb != "disabled":
        train_flags = ("--wandb", config.wandb, *train_flags)
    seeds = parse_seeds(config.seeds)
    runs = plan(config.methods, config.variants, seeds, config.results_dir, train_flags, PROG, config.tuned)
    if not config.dry_run or config.address is not None:
        import_ray()
    check_runs(runs)
    return _estimate(config, runs) if config.dry_run else _run(config, runs)


def check_runs(runs: Sequence[PlannedRun]) -> None:
    """Find out before anything is started whether the runs can be carried out.

    Args:
        runs: the runs, at least one.

    Raises:
        UsageError: the settings of a run are wrong, or differ from those of the run that is there.
    """
    refuse_other_settings(runs)
    for run in runs:
        if run.log.is_symlink():
            raise UsageError(f"'{run.log}' is a symbolic link, and a run would write where it leads; remove it")
    check_wandb(runs[0].config.wandb)
    # One agent of each method and variant is made, with the largest seed: the settings of the other runs differ in
    # nothing that could be wrong.
    for planned in {run.config.run_name: run for run in sorted(runs, key=lambda run: run.config.seed)}.values():
        try:
            with make_agent(planned.config):
                pass
        except ValueError as error:
            raise UsageError(f"{planned.config.run_method}: {error}") from error


def _estimate(config: SweepConfig, runs: Sequence[PlannedRun]) -> int:
    """List the runs and the time that they will take."""
    with nullcontext(cores()) if config.address is None else cluster(config.address) as there:
        slots = max(min(there, config.max_runs_at_once or there), 1)
    for line in describe(runs, slots):
        print(line, flush=True)
    return 0


def _run(config: SweepConfig, runs: Sequence[PlannedRun]) -> int:
    """Carry the runs out, and report which of them failed."""
    jobs = [Job.of(run) for run in runs]
    if all(job.state is State.SKIPPED for job in jobs):
        print(f"all {len(jobs)} runs are finished")
        print(_next_command(config))
        return 0
    view = SweepView(jobs, console(sys.stdout))  # Ray has standard output redirected for a while
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
    print(_next_command(config))
    return 1 if failed else 0


def _next_command(config: SweepConfig) -> str:
    """What to do with the finished runs."""
    where = (
        ""
        if config.results_dir == SweepConfig.results_dir
        else f" --results-dir {shlex.quote(str(config.results_dir))}"
    )
    return f"compare them: python -m experiments.analyze_results{where}"
