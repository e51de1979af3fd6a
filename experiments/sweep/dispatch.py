"""Gives the runs of a sweep to Ray, and gives a run that dies to Ray again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from experiments.program.stopping import StopSignals
from experiments.sweep import worker
from experiments.sweep.cluster import import_ray
from experiments.sweep.jobs import Job, State
from experiments.sweep.view import SweepView

POLL_SECONDS = 0.5


def dispatch(jobs: Sequence[Job], limit: int | None, retries: int, view: SweepView, signals: StopSignals) -> None:
    """Run the waiting jobs until each has finished or failed.

    A run that dies, by a signal, with its node or by an error of its own, is given to Ray again and continues from its
    checkpoint. A run whose command is refused fails at once.

    Args:
        jobs: the jobs of the sweep, whose states are kept up to date.
        limit: how many jobs may be with Ray at the same time; None leaves it to the number of cores.
        retries: how often a run that has died is tried again.
        view: shows the progress of the jobs.
        signals: may ask the sweep to stop.

    Raises:
        StopSignal: a signal arrived. The runs have written their checkpoints and have ended.
    """
    ray = import_ray()
    # Ray itself tries nothing again: this function does, so that the user sees it.
    train = ray.remote(num_cpus=1, max_retries=0)(worker.train)
    waiting = deque(job for job in jobs if job.state is State.WAITING)
    handed_in: dict[Any, Job] = {}
    try:
        while waiting or handed_in:
            signals.answer()
            while waiting and (limit is None or len(handed_in) < limit):
                job = waiting.popleft()
                job.prepare()
                run = job.run
                handed_in[train.remote(run.package, run.flags, run.folder, run.log)] = job
            ended, _ = ray.wait(list(handed_in), timeout=POLL_SECONDS)
            for job in handed_in.values():
                job.look()
            for reference in ended:
                job = handed_in.pop(reference)
                job.judge(_outcome(reference), retries)
                if job.state is State.RETRYING:
                    waiting.appendleft(job)
                view.tell(job)
            view.show()
    finally:
        if handed_in:
            view.say("stopping; the runs under way write their checkpoints")
            for reference in reversed(handed_in):  # the waiting ones first, or they would begin now
                ray.cancel(reference)
            ray.wait(list(handed_in), num_returns=len(handed_in), timeout=2 * worker.STOP_SECONDS)


def _outcome(reference: Any) -> worker.Outcome:
    """How an attempt ended. An attempt that Ray has lost counts as one that died."""
    ray = import_ray()
    try:
        outcome: worker.Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # `train` raised
        return worker.Outcome(1, f"{type(error.cause).__name__}: {error.cause}")
    except ray.exceptions.RayError as error:
        first_sentence = " ".join(str(error).split()).partition(". ")[0]
        return worker.Outcome(1, f"{type(error).__name__}: {first_sentence}")
    return outcome
