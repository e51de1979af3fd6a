"""Learned task weights of finished runs side by side: what `python -m experiments.compare_weights` does."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from experiments.analysis import plots
from experiments.analysis.comparison import analyse
from experiments.analysis.config import CompareWeightsConfig
from experiments.analysis.replicates import as_methods
from experiments.analysis.runs import Run, load_runs, weight_key
from experiments.program.flags import UsageError, parse_seeds
from experiments.program.outputs import check_file, check_folder
from experiments.program.run_files import STEP
from experiments.program.stopping import disk_errors
from experiments.program.weights_and_biases import check_wandb, start_run, wandb_session
from mtrl.files import one_line

PICTURES = ("weight_profile", "task_weights")


def compare_weights(config: CompareWeightsConfig) -> int:
    """Write the pictures of weights as PNG and SVG, and log to W&B where asked.

    Returns:
        The exit status: 1 if W&B failed.

    Raises:
        UsageError: a run that is asked for is missing or has no task weights, the output folder is in the way, or W&B
            cannot be used. Nothing is written then.
    """
    runs, broken = load_runs(config.results_dir)
    chosen = _choose(config, runs)
    check_folder(config.output_dir, "pictures need a folder")
    for name in (file for picture in PICTURES for file in plots.file_names(picture)):
        check_file(config.output_dir / name)
    check_wandb(config.wandb)

    with disk_errors(config.output_dir, UsageError):
        config.output_dir.mkdir(parents=True, exist_ok=True)
        for error in broken:  # only here, because a command that cannot be carried out says nothing else
            print(f"skipped {one_line(error, longest=0)}", file=sys.stderr)
        analysis = analyse(list(as_methods(chosen).values()))
        written = [path for picture in PICTURES for path in plots.write(picture, analysis, config.output_dir)]
    print(f"{', '.join(map(str, written))} written" if written else "no task weight ever changes: no picture")
    if config.wandb == "disabled":
        return 0
    try:
        number = log_weights(config, chosen)
    except Exception as error:  # W&B raises errors of many kinds
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"experiments.compare_weights: W&B failed ({problem})", file=sys.stderr)
        return 1
    print(f"{number} runs in W&B, project {config.wandb_project}, grouped by method and variant")
    if config.wandb == "offline":
        print(f"upload them with: wandb sync {config.output_dir}/wandb/offline-run-*")
    return 0


def log_weights(config: CompareWeightsConfig, runs: Mapping[str, Sequence[Run]]) -> int:
    """Log the task weights of each run as one run of W&B, and return the number of runs."""
    everything = [run for of_name in runs.values() for run in of_name]
    with wandb_session(config.wandb, config.output_dir) as wandb:
        for run in everything:
            with start_run(
                wandb,
                config.output_dir,
                project=config.wandb_project,
                entity=config.wandb_entity,
                group=run.name,
                job_type="analyze",
                name=f"{run.name}-seed_{run.seed}",
                config={**run.settings, "run": run.name, "method": run.config.get("method")},
                tags=["compare_weights"],
                notes="Task weights of a finished run, from its metrics.jsonl.",
            ) as shown:
                for line in weight_lines(run):
                    shown.log(line)
    return len(everything)


def weight_lines(run: Run) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that have task weights, cut down to these and the environment step."""
    rows, steps = run.columns.get(STEP, ((), ()))
    lines: dict[int, dict[str, float]] = {int(row): {STEP: int(step)} for row, step in zip(rows, steps, strict=True)}
    for key in map(weight_key, run.tasks):
        for row, value in zip(*run.columns.get(key, ((), ())), strict=True):
            if row in lines:
                lines[row][key] = float(value)
    return [line for _, line in sorted(lines.items()) if len(line) > 1]


def _choose(config: CompareWeightsConfig, runs: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """The runs to compare by name, out of all `runs` that can be read; seeds in the order asked for."""
    wanted = parse_seeds(config.seeds) if config.seeds else None
    chosen: dict[str, list[Run]] = {}
    for name in config.names:
        if name not in runs:
            there = f"; there are {', '.join(runs)}" if runs else ""
            raise UsageError(f"no finished runs of {name!r} in '{config.results_dir}'{there}")
        by_seed = {run.seed: run for run in runs[name]}
        for seed in wanted or ():
            if seed not in by_seed:
                there = ", ".join(map(str, by_seed))
                raise UsageError(f"no finished run of {name!r} with seed {seed}; there are seeds {there}")
        chosen[name] = [by_seed[seed] for seed in (by_seed if wanted is None else wanted)]
        for run in chosen[name]:
            if not weight_lines(run):
                why = f"{name} does not weigh tasks, or the run was too short to log any"
                raise UsageError(f"'{run.folder}' has no task weights: {why}")
    return chosen
