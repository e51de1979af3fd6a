"""`python -m experiments.analyze_results`: one table over all runs, and figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments import plots
from experiments.cli import UsageError, run
from experiments.runs import BrokenRunError, Run, find_runs

OUTPUTS = ("table.md", "learning_curves.png", "task_weights.png")


@dataclass(frozen=True)
class AnalyzeConfig:
    """Compare finished runs: prints a Markdown table and writes learning curves and task weights as PNG."""

    method: tuple[str, ...] = ()
    """Runs to compare, by folder name (`gradnorm`, `gradnorm_blind`, ...). Default: all that are found."""

    results_dir: Path = Path("results/runs")
    """Where runs are kept."""

    output_dir: Path = Path("results/analysis")
    """Where the table and the figures go."""


def analyze(config: AnalyzeConfig) -> None:
    """Print the table and write table.md, learning_curves.png and task_weights.png.

    Raises:
        UsageError: no run is found, or not one that is asked for, or an output is in the way. Nothing is written then.
    """
    runs, broken = load_runs(config.results_dir)
    if not runs:
        why = f" ({broken[0]})" if broken else ""
        raise UsageError(
            f"no finished runs in '{config.results_dir}'{why}; train one: python -m experiments.gradnorm.train"
        )
    for name in config.method:
        if name not in runs:
            raise UsageError(f"no finished runs of {name!r} in '{config.results_dir}'; there are {', '.join(runs)}")
    if config.output_dir.exists() and not config.output_dir.is_dir():
        raise UsageError(f"'{config.output_dir}' is a file; figures need a folder")
    table, curves, weights = (config.output_dir / name for name in OUTPUTS)
    for path in (table, curves, weights):
        if path.is_dir():
            raise UsageError(f"'{path}' is a folder; a file of this name belongs there")
    config.output_dir.mkdir(parents=True, exist_ok=True)
    for error in broken:
        print(f"skipped {error}", file=sys.stderr)
    chosen = {name: runs[name] for name in config.method or runs}

    text = markdown_table(chosen)
    print(text)
    table.write_text(text + "\n")
    tasks = all_tasks(chosen)
    plots.learning_curves(chosen, tasks, curves)
    plots.task_weights(chosen, tasks, weights)
    print(f"\n{table.name}, {curves.name} and {weights.name} are in {config.output_dir}")


def load_runs(results_dir: Path) -> tuple[dict[str, list[Run]], list[BrokenRunError]]:
    """Finished runs by name, seeds in order, and what is wrong with the folders that can't be read."""
    runs: dict[str, list[Run]] = {}
    broken: list[BrokenRunError] = []
    for found in find_runs(results_dir):
        try:
            if isinstance(found, BrokenRunError):
                raise found
            _ = found.metrics  # a run whose curves can't be read is no use either
            runs.setdefault(found.name, []).append(found)
        except BrokenRunError as error:
            broken.append(error)
    return runs, broken


def all_tasks(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """The tasks of any of the runs, in the order in which they come up."""
    return list(dict.fromkeys(task for of_name in runs.values() for run_ in of_name for task in run_.tasks))


def markdown_table(runs: Mapping[str, Sequence[Run]]) -> str:
    """One line per method: mean +- standard deviation over seeds of each task's mean return, and what follows.

    Seeds are the replicates: a seed's episodes are averaged first. One seed has no deviation.
    """
    tasks = all_tasks(runs)
    lines = [
        f"| method | seeds | {' | '.join(tasks)} | mean | worst task | success |",
        f"| --- | --- |{' --- |' * len(tasks)} --- | --- | --- |",
    ]
    for name, of_name in runs.items():
        results = [run_.evaluation for run_ in of_name]
        cells = [_spread([r["tasks"][task]["mean"] for r in results if task in r["tasks"]]) for task in tasks]
        cells.append(_spread([result["mean"] for result in results]))
        cells.append(_spread([result["worst_task"]["mean"] for result in results]))
        success = np.mean([task["success_rate"] for result in results for task in result["tasks"].values()])
        seeds = ", ".join(str(run_.seed) for run_ in of_name)
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} | {success:.0%} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse and return the exit status."""
    return run(analyze, AnalyzeConfig, argv, prog="experiments.analyze_results")


if __name__ == "__main__":
    sys.exit(main())
