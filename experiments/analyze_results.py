"""`python -m experiments.analyze_results`: compare finished runs in tables and figures."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.analysis.runs import BASELINE, REFERENCE, load_runs
from experiments.program.command import run
from experiments.program.flags import UsageError
from mtrl.files import one_line

if TYPE_CHECKING:
    from experiments.analysis.comparison import Analysis
    from experiments.analysis.replicates import Method
    from experiments.analysis.runs import Run

PROG = "experiments.analyze_results"
ALL = "all"

RANDOM_EPISODES = 100
"""Episodes of random play per task, for the zero of normalised scores."""

TEXTS = ("table.md", "table.csv", "runs.json")


@dataclass(frozen=True)
class AnalyzeConfig:
    """Compare finished runs: prints a table of returns and writes tables, the runs as JSON, and figures.

    Intervals are of 95 %, over seeds. The files are table.md (which explains its columns), table.csv (a number per
    line), runs.json (the form of marl-eval), and each figure as PNG and SVG: learning curves against environment steps
    and wall time, final returns, performance profiles, sample and parameter efficiency, task weights, gradient
    conflicts, AIM's thresholds, RGB's angles. A figure without data is left out. With --html, all of it is also in
    report.html, one page with interactive plots that needs no network.
    """

    method: tuple[str, ...] = (ALL,)
    """Runs to report on: names (`gradnorm`, `gradnorm_blind`, ...), or `all` that are found."""

    results_dir: Path = Path("results/runs")
    """Where runs are kept."""

    output_dir: Path = Path("results/analysis")
    """Where tables and figures go. Those of an earlier analysis are replaced."""

    baseline: str = BASELINE
    """What methods are compared with, in its own variant: blind ones with `<baseline>_blind`."""

    html: bool = False
    """Write report.html too (extra `report`)."""

    video_dir: Path | None = None
    """A folder with mp4 files for the report, as `evaluate --video-dir` makes them. Those in the folders of runs are
    shown anyway."""

    def __post_init__(self) -> None:
        if not self.method:
            raise ValueError("method: there are none; give one or more, or all")
        if self.video_dir is not None and not self.html:
            raise ValueError("--video-dir is for the report: give --html too")


def analyze(config: AnalyzeConfig, words: Sequence[str] = ()) -> None:
    """Print the table of returns and what it can tell, and write all files.

    Args:
        config: what to compare and where.
        words: the command line that `config` was made of, which the report states.

    Raises:
        UsageError: no run is found, or not one that is asked for, or an output is in the way, or a package or folder
            is missing that the report needs. Nothing is written then.
    """
    # Only now: they load SciPy, Matplotlib and PyTorch, for which --help need not wait.
    from experiments.analysis import plots, report, tables  # noqa: PLC0415
    from experiments.analysis.comparison import analyse  # noqa: PLC0415
    from experiments.analysis.replicates import as_methods  # noqa: PLC0415

    if config.html:
        report.check(config.video_dir)
    runs, broken = load_runs(config.results_dir)
    _check_runs(config, runs, broken)
    figures = [f"{name}{suffix}" for name in plots.FIGURES for suffix in plots.SUFFIXES]
    _check_outputs(config.output_dir, [*TEXTS, *figures, report.REPORT_FILE])
    skipped = [one_line(error, longest=0) for error in broken]
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)

    methods = as_methods(runs)
    chosen = [methods[name] for name in dict.fromkeys(methods if ALL in config.method else config.method)]
    analysis = analyse(chosen, methods, config.baseline, _random_returns(methods))
    written = write(analysis, config.output_dir)
    path = config.output_dir / report.REPORT_FILE
    if config.html:
        command = shlex.join(["python", "-m", PROG, *words])
        report.write(analysis, path, command=command, skipped=skipped, video_dir=config.video_dir)
        written.append(path)
    else:
        path.unlink(missing_ok=True)  # it would show an earlier analysis
    print(tables.returns_table(analysis))
    for sentence in (*analysis.warnings, *tables.verdicts(analysis)):
        print(f"\n{sentence}")
    print(f"\n{len(written)} files in {config.output_dir}: {', '.join(path.name for path in written)}")


def write(analysis: Analysis, folder: Path) -> list[Path]:
    """Write table.md, table.csv, runs.json and the figures into `folder`, and return what was written."""
    from experiments.analysis import plots, tables  # noqa: PLC0415
    from experiments.analysis.marl_eval import to_marl_eval  # noqa: PLC0415
    from experiments.program.stopping import disk_errors  # noqa: PLC0415
    from mtrl.files import replacing  # noqa: PLC0415

    contents = (
        tables.markdown(analysis),
        tables.to_csv(analysis),
        json.dumps(to_marl_eval(analysis.methods), separators=(",", ":")) + "\n",
    )
    paths = [folder / name for name in TEXTS]
    with disk_errors(folder, UsageError):
        for path, content in zip(paths, contents, strict=True):
            with replacing(path) as file:
                file.write(content.encode())
        for name in _shown(plots.FIGURES):
            paths += plots.write(name, analysis, folder)
    return paths


def _check_runs(config: AnalyzeConfig, runs: Mapping[str, Sequence[Run]], broken: Sequence[Exception]) -> None:
    if not runs:
        why = f" ({broken[0]})" if broken else ""
        raise UsageError(
            f"no finished runs in '{config.results_dir}'{why}; train one: python -m experiments.gradnorm.train"
        )
    known = ", ".join(runs)
    for name in config.method:
        if name not in (ALL, *runs):
            raise UsageError(f"no finished runs of {name!r} in '{config.results_dir}'; there are {known}")
    # The default may be missing: then nothing is compared.
    if config.baseline != BASELINE and not any(name in runs for name in (config.baseline, f"{config.baseline}_blind")):
        raise UsageError(
            f"no finished runs of baseline {config.baseline!r} in '{config.results_dir}'; there are {known}"
        )


def _check_outputs(folder: Path, names: Iterable[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"'{folder}' is a file; tables and figures need a folder")
    for name in names:
        if (folder / name).is_dir():
            raise UsageError(f"'{folder / name}' is a folder; a file of this name belongs there")
    folder.mkdir(parents=True, exist_ok=True)


def _random_returns(methods: Mapping[str, Method]) -> dict[str, float] | None:
    """Mean returns of a random policy on the tasks of the independent agents, which scores are normalised by."""
    from envs import TASKS  # noqa: PLC0415
    from experiments.analysis.random_policy import random_returns  # noqa: PLC0415

    if REFERENCE not in methods:
        return None
    tasks = [task for task in methods[REFERENCE].tasks if task in TASKS]
    return {
        task: sum(random_returns([task], RANDOM_EPISODES)[task]) / RANDOM_EPISODES
        for task in _shown(tasks, "playing at random")
    }


def _shown(items: Iterable[str], doing: str = "drawing") -> Iterator[str]:
    """The items one by one, with a bar of progress on a terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    console = Console(stderr=True)
    yield from track(list(items), doing, console=console, transient=True, disable=not console.is_terminal)


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse and return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    return run(lambda config: analyze(config, words), AnalyzeConfig, words, prog=PROG)


if __name__ == "__main__":
    sys.exit(main())
