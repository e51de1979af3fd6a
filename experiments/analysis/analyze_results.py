"""Comparing finished runs: what `python -m experiments.analyze_results` does."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from experiments.analysis import plots, report, tables
from experiments.analysis.comparison import Analysis, analyse
from experiments.analysis.config import ALL, AnalyzeConfig
from experiments.analysis.figures import FIGURES
from experiments.analysis.goals import solved_returns
from experiments.analysis.marl_eval import to_marl_eval
from experiments.analysis.replicates import Method, as_methods
from experiments.analysis.runs import BASELINE, BLIND, REFERENCE, Run, load_runs
from experiments.program import random_policy
from experiments.program.flags import UsageError
from experiments.program.locking import locked
from experiments.program.outputs import check_file, check_folder
from experiments.program.stopping import disk_errors
from experiments.program.tasks import get_tasks, tasks_called
from experiments.program.terminal import console, progress
from mtrl.files import one_line, replacing

RANDOM_EPISODES = 100
"""Episodes of random play per task, for the zero of normalised scores."""

TEXTS = ("table.md", "table.csv", "runs.json")


def analyze(config: AnalyzeConfig) -> None:
    """Print the table of returns and what can be concluded from it, and write all files.

    Args:
        config: what to compare and where.

    Raises:
        UsageError: no run is found, or one that is asked for is missing, or an output is in the way, or a package or
            folder is missing that the report needs. Nothing is written then.
    """
    if config.html:
        report.check(config.video_dir)
    if config.tasks:
        get_tasks(config.tasks)
    runs, broken = load_runs(config.results_dir)
    _check_runs(config, runs, broken)
    figures = [file for name in FIGURES for file in plots.file_names(name)]
    check_folder(config.output_dir, "tables and figures need a folder")
    for name in (*TEXTS, *figures, report.REPORT_FILE):
        check_file(config.output_dir / name)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    skipped = [one_line(error, longest=0) for error in broken]
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)

    methods = as_methods(runs)
    chosen = [methods[name] for name in dict.fromkeys(methods if ALL in config.method else config.method)]
    analysis = analyse(chosen, methods, config.baseline, _random_returns(methods, config.tasks))
    with locked(config.output_dir, otherwise="wait for it, or give another --output-dir"):
        written = write(analysis, config.output_dir)
        path = config.output_dir / report.REPORT_FILE
        if config.html:
            report.write(analysis, path, command=command(config), skipped=skipped, video_dir=config.video_dir)
            written.append(path)
        else:
            path.unlink(missing_ok=True)  # it would show an earlier analysis
    print(tables.returns_table(analysis))
    for sentence in (*analysis.warnings, *tables.verdicts(analysis)):
        print(f"\n{sentence}")
    print(f"\n{len(written)} files in {config.output_dir}: {', '.join(path.name for path in written)}")


def command(config: AnalyzeConfig) -> str:
    """The command line of an analysis, with the flags that differ from their defaults."""
    words = ["python", "-m", "experiments.analyze_results"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            words.append(f"--{field.name.replace('_', '-')}")
            words += [] if value is True else list(value) if isinstance(value, tuple) else [str(value)]
    return shlex.join(words)


def write(analysis: Analysis, folder: Path) -> list[Path]:
    """Write table.md, table.csv, runs.json and the figures into `folder`, and return what was written."""
    contents = (
        tables.markdown(analysis),
        tables.to_csv(analysis),
        json.dumps(to_marl_eval(analysis.methods), separators=(",", ":")) + "\n",
    )
    paths = [folder / name for name in TEXTS]
    with disk_errors(folder, UsageError):
        for path, content in zip(paths, contents, strict=True):
            with replacing(path) as file:
                file.write(content.encode(errors="backslashreplace"))
        for name in _shown(FIGURES):
            paths += plots.write(name, analysis, folder)
    return paths


def _check_runs(config: AnalyzeConfig, runs: Mapping[str, Sequence[Run]], broken: Sequence[Exception]) -> None:
    where = f"in '{config.results_dir}'"
    if not runs:
        why = f" ({broken[0]})" if broken else ""
        raise UsageError(f"no finished runs {where}{why}; train one: python -m experiments.gradnorm.train")
    known = ", ".join(runs)
    for name in config.method:
        if name not in (ALL, *runs):
            raise UsageError(f"no finished runs of {name!r} {where}; there are {known}")
    # The default baseline may be missing: then nothing is compared.
    if config.baseline != BASELINE and not any(name in runs for name in (config.baseline, config.baseline + BLIND)):
        raise UsageError(f"no finished runs of baseline {config.baseline!r} {where}; there are {known}")


def _random_returns(methods: Mapping[str, Method], given: Sequence[str]) -> dict[str, float] | None:
    """Mean returns of a random policy, which normalised scores need; None if scores are not normalised.

    They are normalised where there are independent agents, and where the returns of different tasks are of different
    sizes, as far as what counts as solved tells.

    Args:
        methods: all methods.
        given: words of the user's, which say where tasks are.
    """
    solved = solved_returns(methods.values())
    if REFERENCE in methods:
        names: Sequence[str] = methods[REFERENCE].tasks
    else:
        names = [task for task, threshold in solved.items() if threshold is not None]
        if len(set(solved.values())) < 2:
            return None
    found = {}
    for name in _shown(names, "playing at random"):
        try:
            task = tasks_called([name], given)[name]
            found[name] = sum(random_policy.random_returns([task], RANDOM_EPISODES)[name]) / RANDOM_EPISODES
        except ValueError as error:
            print(f"scores are not normalised on {one_line(name)}: {one_line(error)}", file=sys.stderr)
    return found


def _shown(items: Iterable[str], doing: str = "drawing") -> Iterator[str]:
    """The items one by one, with a progress bar on a terminal."""
    there = console(sys.stderr)
    with progress(not there.is_terminal, doing, console=there, transient=True) as bar:
        yield from bar.track(list(items))
