"""Running every method of a study with every seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from experiments.program.terminal import progress

Result = TypeVar("Result")


def collect(
    title: str, methods: Sequence[str], seeds: Sequence[int], train: Callable[[str, int], Result], quiet: bool
) -> dict[str, dict[int, Result]]:
    """Call `train` for every method and seed and return the results by method and seed.

    PyTorch computes with one thread, so that sums have the same order and a re-run gives the same numbers. A progress
    bar with this title is shown unless `quiet`.
    """
    torch.set_num_threads(1)
    results: dict[str, dict[int, Result]] = {method: {} for method in methods}
    with progress(quiet) as bar:
        row = bar.add_task(title, total=len(methods) * len(seeds))
        for seed in seeds:
            for method in methods:
                results[method][seed] = train(method, seed)
                bar.advance(row)
    return results
