"""Settings of the programs that analyse finished runs; every field is a flag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.analysis.runs import BASELINE, BLIND
from experiments.program.flags import parse_seeds
from experiments.program.weights_and_biases import WandbMode, check_wandb_project
from mtrl.limits import Limits, check_fields

ALL = "all"


@dataclass(frozen=True)
class AnalyzeConfig:
    """Compare finished runs: print a table of returns, and write tables, figures, and the runs as JSON.

    Intervals are 95 % confidence intervals over seeds. The files are table.md, which explains its columns; table.csv,
    with one number per line; runs.json, in the form of marl-eval; and each figure as PNG and SVG: learning curves,
    final returns, performance profiles, sample efficiency, parameter efficiency, task weights, gradient conflicts,
    AIM's thresholds, and RGB's angles. A figure without data is left out. With --html, report.html shows all of it in
    one page with interactive plots that needs no network.
    """

    method: tuple[str, ...] = (ALL,)
    """Runs to report on: names (`gradnorm`, `gradnorm_blind`, ...), or `all` that are found."""

    results_dir: Path = Path("results/runs")
    """Where runs are kept."""

    output_dir: Path = Path("results/analysis")
    """Where tables and figures go. Those of an earlier analysis are replaced."""

    baseline: str = BASELINE
    """The method that others are compared with. Methods of the blind variant are compared with `<baseline>_blind`, and
    runs of `--algorithm sac` with `shared_sac` unless another baseline is given."""

    tasks: tuple[str, ...] = ()
    """Where tasks of your own are (`my_tasks:MOON`), so that a random policy can play them: its returns are the 0 of
    normalised scores. No address is taken from a run. Landers and Gymnasium's ids are known."""

    html: bool = False
    """Also write report.html (extra `report`)."""

    video_dir: Path | None = None
    """A folder with mp4 files for the report, as `evaluate --video-dir` makes them. Films in the folders of runs are
    shown in any case."""

    def __post_init__(self) -> None:
        if not self.method:
            raise ValueError("method: there are none; give one or more, or all")
        if self.video_dir is not None and not self.html:
            raise ValueError("--video-dir is for the report: give --html too")


@dataclass(frozen=True)
class CompareWeightsConfig:
    """Show the learned task weights of finished runs side by side: a picture and, with --wandb, a view in W&B.

    In W&B every run of a method and seed becomes one run of job type `analyze` with the keys `balancer/<task>/weight`,
    in the group of its method and variant: group by it there to see means over seeds. The weights are read from
    metrics.jsonl.
    """

    methods: tuple[str, ...]
    """Runs to compare, by name (`gradnorm`, `gradnorm_blind`, ...)."""

    variants: tuple[Literal["aware", "blind"], ...] = ()
    """Variants of these methods: `--methods rgb --variants aware blind` is `--methods rgb rgb_blind`. Default: the runs
    as they are named."""

    seeds: tuple[str, ...] = ()
    """Seeds to show: numbers and ranges, such as `0 3 7-9`. Default: all that are found."""

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
        suffixes = [BLIND if variant == "blind" else "" for variant in self.variants] or [""]
        return tuple(dict.fromkeys(f"{method}{suffix}" for method in self.methods for suffix in suffixes))


@dataclass(frozen=True)
class ArchiveConfig:
    """Copy finished runs in a form that is small enough for version control, and that every analysis reads.

    A copy has config.json and evaluation.json as they are, and metrics.jsonl with all evaluations and as many of the
    other lines as fit, every number rounded to five digits. Models, checkpoints and event files stay behind.
    """

    results_dir: Path = Path("results/runs")
    """Where runs are kept."""

    output_dir: Path = Path("results/archive")
    """Where the copies go. A copy that is there is made again if it is of the same settings, and refused if not."""

    models_dir: Path | None = None
    """Also write the network of the first seed of each run into this folder, as `<run>.safetensors`, for
    `evaluate --pretrained`. A run without a model is left out."""

    largest: Annotated[int, Limits(least=10, most=100_000)] = 60
    """The largest size of a copy, in kB."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class PlotRecordingConfig:
    """Draw the losses, task weights, cosines between task gradients and other diagnostics of one recording, as PNG."""

    recording: tyro.conf.Positional[Path]
    """The file that an `mtrl.Recorder` has written, or the `metrics.jsonl` of a training run."""

    output_dir: Path | None = None
    """Where the figures go. Default: the recording's folder."""
