"""`python -m experiments.compare_weights`: learned task weights of finished runs side by side, in W&B and as PNG."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.analysis.runs import STEP, load_runs
from experiments.program.command import run
from experiments.program.flags import UsageError, parse_seeds
from experiments.training.config import Variant, WandbMode, check_wandb_project, run_name
from mtrl.files import one_line

if TYPE_CHECKING:
    from experiments.analysis.runs import Run

PROG = "experiments.compare_weights"
FIGURE = "task_weights"


@dataclass(frozen=True)
class CompareWeightsConfig:
    """Show the learned task weights of finished runs side by side: a picture and, with --wandb, a view in W&B.

    In W&B every run of a method and seed becomes one run of job type `analyze` with the keys `balancer/<task>/weight`,
    in the group of its method and variant: group by it there to see means over seeds. All comes from metrics.jsonl.
    """

    methods: tuple[str, ...]
    """Runs to compare, by name (`gradnorm`, `gradnorm_blind`, ...)."""

    variants: tuple[Variant, ...] = ()
    """In which variants: `--methods rgb --variants aware blind` is `--methods rgb rgb_blind`. Default: as named."""

    seeds: tuple[str, ...] = ()
    """Which seeds: numbers and ranges, such as `0 3 7-9`. Default: all that are found."""

    results_dir: Path = Path("results/runs")
    """Where runs are kept."""

    output_dir: Path = Path("results/analysis/compare_weights")
    """Where the picture and W&B's offline runs go."""

    wandb: WandbMode = "disabled"
    """Log to Weights & Biases (extra `wandb`): `offline` below the output folder, to be uploaded later with
    `wandb sync`, or `online`, which needs `wandb login` first."""

    wandb_project: str = "mtrl"
    """Project in Weights & Biases."""

    wandb_entity: str | None = None
    """User or team in Weights & Biases. Default: that of the login."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods: there are none; give one or more")
        if self.seeds:
            parse_seeds(self.seeds)
        check_wandb_project(self.wandb_project)

    @property
    def names(self) -> tuple[str, ...]:
        """The runs to compare, each name once."""
        names = [run_name(method, variant) for method in self.methods for variant in self.variants] or self.methods
        return tuple(dict.fromkeys(names))


def compare_weights(config: CompareWeightsConfig) -> int:
    """Write task_weights.png (and SVG), and log to W&B where asked; returns the exit status: 1 if W&B failed.

    Raises:
        UsageError: a run that is asked for is missing or has no task weights, the output folder is in the way, or W&B
            can't be used. Nothing is written then.
    """
    # Only now: they load Matplotlib and PyTorch, for which --help need not wait.
    from experiments.analysis import plots  # noqa: PLC0415
    from experiments.analysis.comparison import analyse  # noqa: PLC0415
    from experiments.analysis.replicates import as_methods  # noqa: PLC0415
    from experiments.program.stopping import disk_errors  # noqa: PLC0415
    from experiments.training.tracking import check_wandb  # noqa: PLC0415

    runs, broken = load_runs(config.results_dir)
    chosen = _choose(config, runs)
    if config.output_dir.exists() and not config.output_dir.is_dir():
        raise UsageError(f"'{config.output_dir}' is a file; pictures need a folder")
    for suffix in plots.SUFFIXES:
        if (path := config.output_dir / f"{FIGURE}{suffix}").is_dir():
            raise UsageError(f"'{path}' is a folder; a file of this name belongs there")
    check_wandb(config.wandb)

    with disk_errors(config.output_dir, UsageError):
        config.output_dir.mkdir(parents=True, exist_ok=True)
        for error in broken:  # only now, as a command that can't be carried out says nothing else
            print(f"skipped {one_line(error, longest=0)}", file=sys.stderr)
        written = plots.write(FIGURE, analyse(list(as_methods(chosen).values())), config.output_dir)
    print(f"{' and '.join(map(str, written))} written" if written else "no task weight ever changes: no picture")
    if config.wandb == "disabled":
        return 0
    try:
        number = log_weights(config, chosen)
    except Exception as error:  # of many kinds
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{PROG}: W&B failed ({problem})", file=sys.stderr)
        return 1
    print(f"{number} runs in W&B, project {config.wandb_project}, grouped by method and variant")
    if config.wandb == "offline":
        print(f"upload them with: wandb sync {config.output_dir}/wandb/offline-run-*")
    return 0


def log_weights(config: CompareWeightsConfig, runs: Mapping[str, Sequence[Run]]) -> int:
    """Log the task weights of each run as one run of W&B; returns how many these are."""
    from experiments.training.tracking import start_run, wandb_session  # noqa: PLC0415

    everything = [run_ for of_name in runs.values() for run_ in of_name]
    with wandb_session(config.wandb, config.output_dir) as wandb:
        for run_ in everything:
            with start_run(
                wandb,
                config.output_dir,
                project=config.wandb_project,
                entity=config.wandb_entity,
                group=run_.name,
                job_type="analyze",
                name=f"{run_.name}-seed_{run_.seed}",
                config={**run_.settings, "run": run_.name, "method": run_.config.get("method")},
                tags=["compare_weights"],
                notes="Task weights of a finished run, from its metrics.jsonl.",
            ) as shown:
                for line in weight_lines(run_):
                    shown.log(line)
    return len(everything)


def weight_lines(run_: Run) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that have task weights, cut down to these and the environment step."""
    keys = [_key(task) for task in run_.tasks]
    lines = [line for line in run_.metrics if STEP in line and any(key in line for key in keys)]
    return [{key: line[key] for key in (STEP, *keys) if key in line} for line in lines]


def _choose(config: CompareWeightsConfig, runs: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """The runs to compare by name, out of all `runs` that can be read; seeds in order."""
    wanted = parse_seeds(config.seeds) if config.seeds else None
    chosen: dict[str, list[Run]] = {}
    for name in config.names:
        if name not in runs:
            there = f"; there are {', '.join(runs)}" if runs else ""
            raise UsageError(f"no finished runs of {name!r} in '{config.results_dir}'{there}")
        by_seed = {run_.seed: run_ for run_ in runs[name]}
        for seed in wanted or ():
            if seed not in by_seed:
                there = ", ".join(map(str, by_seed))
                raise UsageError(f"no finished run of {name!r} with seed {seed}; there are seeds {there}")
        chosen[name] = [by_seed[seed] for seed in (by_seed if wanted is None else wanted)]
        for run_ in chosen[name]:
            if not weight_lines(run_):
                raise UsageError(f"'{run_.folder}' has no task weights: {name} does not weigh tasks")
    return chosen


def _key(task: str) -> str:
    return f"balancer/{task}/weight"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and return the exit status."""
    return run(compare_weights, CompareWeightsConfig, argv, prog=PROG)


if __name__ == "__main__":
    sys.exit(main())
