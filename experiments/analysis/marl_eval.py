"""Runs in the JSON form of marl-eval, which other tools for statistics of reinforcement learning read.

    environment -> task -> algorithm -> seed -> step_0, step_1, ..., absolute_metrics

A step has `step_count` (environment steps over all tasks) and `return`, a list of one number: the mean of its greedy
episodes. `absolute_metrics` has every return of the final evaluation. Names of environments and tasks are in lower
case, because marl-eval looks them up like this. The plots of marl-eval need the same number of seeds and steps for
every algorithm. (Gorsane et al. 2022, https://arxiv.org/abs/2209.10485.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.analysis.replicates import Method
from experiments.analysis.runs import Run


def to_marl_eval(methods: Iterable[Method]) -> dict[str, Any]:
    """All runs of the methods, as nested mappings for JSON."""
    environments: dict[str, Any] = {}
    for method in methods:
        for run in method.runs:
            environment = environments.setdefault(str(run.config.get("base_environment") or "unknown").lower(), {})
            for task in method.tasks:
                algorithms = environment.setdefault(task.lower(), {})
                algorithms.setdefault(method.name, {})[f"seed_{run.seed}"] = _of_task(run, task)
    return environments


def _of_task(run: Run, task: str) -> dict[str, Any]:
    """The steps and the final evaluation of a run on one task."""
    steps: dict[str, Any] = {
        f"step_{index}": {"step_count": int(step), "return": [value]}
        for index, (step, value) in enumerate(zip(*(x.tolist() for x in run.curve(f"eval/{task}/return")), strict=True))
    }
    result = run.evaluation["tasks"][task]
    return steps | {"absolute_metrics": {"return": result.get("returns") or [result["mean"]]}}
