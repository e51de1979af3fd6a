"""Small copies of finished runs: what `python -m experiments.archive` does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents import load_agent
from experiments.analysis.config import ArchiveConfig
from experiments.analysis.runs import Run, load_runs
from experiments.program.flags import UsageError
from experiments.program.locking import locked
from experiments.program.outputs import check_folder
from experiments.program.run_files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    BrokenRunError,
    read_config,
    read_lines,
)
from experiments.program.run_folder import MODEL_FILE
from experiments.program.saved_run import differences
from experiments.program.stopping import disk_errors
from experiments.program.terminal import console, progress
from mtrl.checkpoint import CheckpointError
from mtrl.files import one_line, replacing
from mtrl.rl.weights import SUFFIX

DIGITS = 5  # of every number in metrics.jsonl
EVALUATION = "eval/"  # the beginning of the keys of the learning curves


def archive(config: ArchiveConfig) -> None:
    """Copy the finished runs in one folder to another one, with metrics that are thinned.

    Raises:
        UsageError: there are no finished runs, or the output folder holds other runs under their names, or cannot be
            written to. Nothing is written in the first two cases.
    """
    found, broken = load_runs(config.results_dir)
    runs = {name: of_method for name, of_method in found.items() if _is_of_folder(name)}
    for of_method in (found[name] for name in found.keys() - runs.keys()):
        broken += [BrokenRunError(f"{run.folder}: its name, {run.name!r}, is no name of a folder") for run in of_method]
    chosen = [run for of_method in runs.values() for run in of_method]
    if not chosen:
        raise UsageError(f"there are no finished runs in '{config.results_dir}'")
    for folder in filter(None, (config.output_dir, config.models_dir)):
        check_folder(folder)
    for run in chosen:
        _refuse_another(run, _copy_of(run, config.output_dir))
    models = {} if config.models_dir is None else _models(runs, config.models_dir)
    with disk_errors(config.output_dir, UsageError):
        config.output_dir.mkdir(parents=True, exist_ok=True)
        for error in broken:
            print(f"skipped {one_line(error, longest=0)}", file=sys.stderr)
        there = console(sys.stderr)
        with locked(config.output_dir), progress(not there.is_terminal, console=there, transient=True) as bar:
            for run in bar.track(chosen, description="copying"):
                _copy(run, _copy_of(run, config.output_dir), config.largest * 1000)
            for path, model in bar.track(models.items(), description="networks", total=len(models)):
                path.parent.mkdir(parents=True, exist_ok=True)
                load_agent(model, device="cpu").save_weights(path)
    print(f"{len(chosen)} runs in {config.output_dir}")
    if config.models_dir is not None:
        print(f"{len(models)} networks in {config.models_dir}")


def _is_of_folder(name: str) -> bool:
    """Whether the name of a run, which a stranger may have chosen, can be that of a folder: no path, and not hidden."""
    return not set(name) & set("/\\:") and name.strip(". ") == name


def _models(runs: Mapping[str, Sequence[Run]], folder: Path) -> dict[Path, Path]:
    """The files of networks to write, each with the model that it comes from.

    Raises:
        UsageError: a file of that name is there, and is no network; or a model is not to be read.
    """
    found = {}
    for name, of_method in runs.items():
        path, model = folder / f"{name}{SUFFIX}", of_method[0].folder / MODEL_FILE
        if not model.exists():
            continue
        try:
            load_agent(model, device="cpu")
            if os.path.lexists(path):
                load_agent(path, device="cpu")
        except CheckpointError as error:
            raise UsageError(f"{one_line(error, longest=0)}; move it away") from None
        found[path] = model
    return found


def thinned(lines: Sequence[dict[str, float]], room: int) -> list[str]:
    """The lines of a file of metrics that has at most `room` bytes.

    All lines with evaluations are kept, and the last line; of the others as many as fit, evenly spaced, every number
    rounded to five digits. If not even the evaluations fit, they are thinned in the same way.

    Args:
        lines: all lines.
        room: bytes.
    """
    texts = [f"{json.dumps({key: _rounded(value) for key, value in line.items()})}\n" for line in lines]
    needed = [any(key.startswith(EVALUATION) for key in line) for line in lines[:-1]] + [True] * bool(lines)
    for must in (needed, [False] * len(needed[:-1]) + [True] * bool(lines)):
        stride = 1
        while stride < 2 * len(texts):
            kept = [text for i, (text, need) in enumerate(zip(texts, must, strict=True)) if need or i % stride == 0]
            if sum(map(len, kept)) <= room:
                return kept
            stride += max(stride // 8, 1)  # few strides, because there may be millions of lines
    return []


def _rounded(value: float) -> float:
    """A number to five digits; integers stay as they are."""
    return value if float(value).is_integer() else float(f"{value:.{DIGITS}g}")


def _copy_of(run: Run, output_dir: Path) -> Path:
    return output_dir / run.name / f"seed_{run.seed}"


def _refuse_another(run: Run, folder: Path) -> None:
    """Make sure that the folder is free, or holds an earlier copy of the same run and nothing else.

    Raises:
        UsageError: it is not so.
    """
    another = "give another --output-dir"
    if any(path.is_symlink() for path in (folder, folder.parent)):
        raise UsageError(f"'{folder}' is reached through a symbolic link; {another}")
    if not folder.exists():
        return
    if folder.samefile(run.folder):
        raise UsageError(f"'{folder}' is the run itself, which a copy would replace; {another}")
    if others := {path.name for path in folder.iterdir()} - {CONFIG_FILE, METRICS_FILE, EVALUATION_FILE}:
        raise UsageError(f"'{folder}' is no copy of a run: it holds {', '.join(map(repr, sorted(others)))}; {another}")
    try:
        before = read_config(folder)
    except BrokenRunError as error:
        raise UsageError(f"{one_line(error, longest=0)}; move it away") from None
    if before != run.config:
        changed = differences({**before, **before["settings"]}, {**run.config, **run.settings}, ["settings"])
        raise UsageError(f"'{folder}' holds another run ({one_line(', '.join(changed))}); {another}")


def _copy(run: Run, folder: Path, largest: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fixed: dict[str, Any] = {name: (run.folder / name).read_bytes() for name in (CONFIG_FILE, EVALUATION_FILE)}
    room = largest - sum(map(len, fixed.values()))
    lines = thinned(list(read_lines(run.folder / METRICS_FILE)), room)
    # evaluation.json comes last, as in a run: with it, the copy is complete.
    for name, content in ((CONFIG_FILE, fixed[CONFIG_FILE]), (METRICS_FILE, "".join(lines).encode())):
        with replacing(folder / name) as file:
            file.write(content)
    with replacing(folder / EVALUATION_FILE) as file:
        file.write(fixed[EVALUATION_FILE])
