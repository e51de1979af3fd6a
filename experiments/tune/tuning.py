"""Carries a search out: proposes trials, runs them, and keeps the best settings of each method."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, Protocol

from rich.console import Console

from experiments.program.flags import UsageError, parse_seeds
from experiments.program.locking import locked
from experiments.program.outputs import check_folder, write_json
from experiments.program.run_files import BrokenRunError, read_config, read_evaluation, read_json
from experiments.program.stopping import StopSignal, StopSignals
from experiments.program.terminal import console, show_table
from experiments.sweep.cluster import check_nodes, cluster, cores, import_ray
from experiments.sweep.dispatch import dispatch
from experiments.sweep.estimate import measure_speed
from experiments.sweep.grid import PlannedRun, flag_of, plan
from experiments.sweep.jobs import Job, State
from experiments.sweep.progress import duration
from experiments.sweep.sweeping import check_runs
from experiments.sweep.view import SweepView
from experiments.sweep.worker import train
from experiments.training.search import Space
from experiments.tune.config import PROG, TuneConfig
from experiments.tune.report import draw_trials, trials_table

RETRIES = 3
SETTINGS_FILE, BEST_FILE, STUDY_FILE, PICTURE = "settings.json", "best.json", "study.json", "trials.png"


class Carry(Protocol):
    """Carries out runs; see `carrier`."""

    def __call__(self, jobs: Sequence[Job], view: SweepView, signals: StopSignals) -> None:
        """Bring every job to its last state."""


@dataclass(frozen=True)
class Tried:
    """A trial that has been carried out: its settings, and its score by seed, empty if a run has failed."""

    settings: Mapping[str, Any]
    scores: Mapping[int, float]

    @property
    def score(self) -> float | None:
        """The mean over seeds; None if a run has failed."""
        return fmean(self.scores.values()) if self.scores else None


def tune(config: TuneConfig, train_flags: Sequence[str]) -> int:
    """Search the settings of every method, and return the exit status: 1 if a run has failed.

    Raises:
        UsageError: the search cannot be carried out; nothing has been started.
    """
    optuna = import_optuna()
    check_folder(config.results_dir)
    studies = [Study(config, name, train_flags, optuna) for name in dict.fromkeys(config.methods)]
    for study in studies:
        study.check()
    if config.dry_run:
        return _estimate(config, studies)
    out = console(sys.stdout)  # made here, because Ray has standard output redirected for a while
    try:
        with StopSignals() as signals, carrier(config) as carry:
            for study in studies:
                study.folder.mkdir(parents=True, exist_ok=True)
                with locked(study.folder, "another search is going on in"):
                    study.run(carry, signals, out)
                    study.write(out)
    except StopSignal as stop:
        print(f"{PROG}: stopped by {stop}; the same command goes on", file=sys.stderr)
        return stop.status
    return 1 if any(tried.score is None for study in studies for tried in study.tried) else 0


def import_optuna() -> ModuleType:
    """Import Optuna, which is optional.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise UsageError("a search needs Optuna, which is not installed: pip install 'mtrl-balance[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    module: ModuleType = optuna
    return module


class Study:
    """The search of one method's settings.

    Args:
        config: the settings of the search.
        name: the name of the method.
        train_flags: further flags of each run.
        optuna: the module.

    Raises:
        UsageError: the method is unknown, or a flag is not for a run of a search.
        SystemExit: the method has no such flags.
    """

    def __init__(self, config: TuneConfig, name: str, train_flags: Sequence[str], optuna: ModuleType) -> None:
        self.config = config
        self.seeds = parse_seeds(config.seeds)
        if "--settings" in map(flag_of, train_flags):
            raise UsageError("argument --settings after '--': a trial has a file of its own; give settings as flags")
        self._plan = partial(plan, [name], [config.variant], prog=PROG)
        self._flags = (*train_flags, "--total-steps", str(config.total_steps), "--eval-interval", "0")
        first = self._plan([self.seeds[0]], config.results_dir, self._flags)[0]
        self.default = first
        self.name = first.config.run_name
        self.folder = config.results_dir.absolute() / self.name
        self.space: Mapping[str, Space] = first.config.search_space
        self._refuse_what_is_searched(train_flags)
        self.tried: list[Tried] = []
        sampler = optuna.samplers.TPESampler(seed=config.sampler_seed, n_startup_trials=config.together)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        defaults = {name: getattr(first.config, name) for name in self.space}
        points = [space.point(name, defaults[name]) for name, space in self.space.items()]
        self._study.enqueue_trial({name: value for point in points for name, value in point.items()})
        self._failed = optuna.trial.TrialState.FAIL

    def _refuse_what_is_searched(self, train_flags: Sequence[str]) -> None:
        """Make sure that no flag of the runs takes the place of what a trial proposes.

        Raises:
            UsageError: a flag does.
        """
        for flag in map(flag_of, train_flags):
            if flag.removeprefix("--").removeprefix("no-").replace("-", "_") in self.space:
                searched = ", ".join(self.space)
                raise UsageError(f"argument {flag} after '--': the search of {self.name} sets {searched}")

    def check(self) -> None:
        """Find out whether the runs can be carried out.

        Raises:
            UsageError: they cannot.
        """
        check_runs([self.default])

    def runs(self, number: int) -> list[PlannedRun]:
        """The runs of a trial, whose file of settings is written."""
        folder = self._trial_folder(number)
        return self._plan(self.seeds, folder, (*self._flags, "--settings", str(folder / SETTINGS_FILE)))

    def run(self, carry: Carry, signals: StopSignals, out: Console) -> None:
        """Carry out all trials, `together` at once."""
        while (begin := len(self.tried)) < self.config.trials:
            count = min(self.config.together, self.config.trials - begin)
            # All of them are proposed even if fewer are wanted, so that a search with more trials begins alike.
            asked = [self._study.ask() for _ in range(self.config.together)][:count]
            chosen = [{name: space.suggest(trial, name) for name, space in self.space.items()} for trial in asked]
            for number, settings in enumerate(chosen, begin):
                self._note(number, settings)
            runs = [run for number in range(begin, begin + count) for run in self.runs(number)]
            check_runs(runs)
            jobs = [Job.of(run) for run in runs]
            with SweepView(jobs, out) as view:
                if any(job.state is State.WAITING for job in jobs):
                    view.say(f"{self.name}: trials {begin + 1} to {begin + count} of {self.config.trials}")
                    carry(jobs, view, signals)
            for trial, settings, number in zip(asked, chosen, range(begin, begin + count), strict=True):
                tried = Tried(settings, self._scores(number))
                self.tried.append(tried)
                if tried.score is None:
                    self._study.tell(trial, state=self._failed)
                else:
                    self._study.tell(trial, tried.score)

    def write(self, out: Console) -> None:
        """Write and show what was found.

        Raises:
            UsageError: no trial has finished.
        """
        done = [tried for tried in self.tried if tried.score is not None]
        if not done:
            raise UsageError(f"no trial of {self.name} has finished; the logs are in '{self.folder}'")
        best = max(done, key=lambda tried: tried.score or 0.0)
        record = {
            "run": self.name,
            "seeds": self.seeds,
            "total_steps": self.config.total_steps,
            "trials": [{"settings": t.settings, "scores": t.scores, "score": t.score} for t in self.tried],
        }
        write_json(self.folder / STUDY_FILE, record)
        write_json(self.folder / BEST_FILE, best.settings)
        draw_trials(self.name, self.tried, self.folder / PICTURE)
        show_table(trials_table(self.name, self.tried), out)
        out.print(f"best settings of {self.name} in {self.folder / BEST_FILE}", markup=False, soft_wrap=True)

    def _trial_folder(self, number: int) -> Path:
        return self.folder / f"trial_{number:02}"

    def _note(self, number: int, settings: Mapping[str, Any]) -> None:
        """Write the settings of a trial for its runs to read, or make sure that they are those which stand there."""
        path = self._trial_folder(number) / SETTINGS_FILE
        try:
            known = read_json(path.parent, path.name) if os.path.lexists(path) else dict(settings)
        except BrokenRunError as error:
            raise UsageError(f"{error}; move it away") from None
        if known != json.loads(json.dumps(settings)):
            raise UsageError(
                f"'{path}' was proposed by another search; repeat its --sampler-seed, --together, --seeds and "
                "versions, or give another --results-dir"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)

    def _scores(self, number: int) -> dict[int, float]:
        """The score of each seed of a trial; none at all if a run has not finished."""
        try:
            evaluations = {
                run.config.seed: read_evaluation(run.folder, read_config(run.folder)) for run in self.runs(number)
            }
            return {seed: float(evaluation["mean"]) for seed, evaluation in evaluations.items()}
        except BrokenRunError:
            return {}


@contextmanager
def carrier(config: TuneConfig) -> Iterator[Carry]:
    """Give a function that carries out runs: through Ray where it is installed, and one at a time otherwise."""
    try:
        import_ray()
    except UsageError:
        if config.address is not None:
            raise
        yield _one_at_a_time
        return
    with cluster(config.address):
        config.results_dir.mkdir(parents=True, exist_ok=True)
        check_nodes(config.results_dir.absolute())

        def carry(jobs: Sequence[Job], view: SweepView, signals: StopSignals) -> None:
            dispatch(jobs, config.max_runs_at_once, RETRIES, view, signals)

        yield carry


def _one_at_a_time(jobs: Sequence[Job], view: SweepView, signals: StopSignals) -> None:
    """Carry out runs in processes of their own, one after the other."""
    for job in jobs:
        while not job.state.is_last:
            signals.answer()
            job.prepare()
            job.state = State.RUNNING
            job.judge(train(job.run.package, job.run.flags, job.run.folder, job.run.log), RETRIES)
            view.tell(job)


def _estimate(config: TuneConfig, studies: Sequence[Study]) -> int:
    """Say what the search costs, by a few seconds of each method on this machine."""
    slots = min(cores(), config.max_runs_at_once or cores())
    total = 0.0
    for study in studies:
        runs = config.trials * len(study.seeds)
        seconds = runs * config.total_steps / measure_speed(study.default.config)
        total += seconds
        print(
            f"{study.name}: {config.trials} trials x {len(study.seeds)} seeds x {config.total_steps:,} steps, "
            f"about {duration(seconds)} of one core; searches {', '.join(study.space)}",
            flush=True,
        )
    print(f"about {duration(total / slots)} with {slots} at once, without evaluations")
    return 0
