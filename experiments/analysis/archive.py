"""Small copies of finished runs: what `python -m experiments.archive` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from experiments.program.stopping import disk_errors
from experiments.program.terminal import console, progress
from mtrl.files import one_line, replacing

DIGITS = 5  # of every number in metrics.jsonl
EVALUATION = "eval/"  # the beginning of the keys of the learning curves


def archive(config: ArchiveConfig) -> None:
    """Copy the finished runs in one folder to another one, with metrics that are thinned.

    Raises:
        UsageError: there are no finished runs, or the output folder holds other runs under their names, or cannot be
            written to. Nothing is written in the first two cases.
    """
    runs, broken = load_runs(config.results_dir)
    chosen = [run for of_method in runs.values() for run in of_method]
    if not chosen:
        raise UsageError(f"there are no finished runs in '{config.results_dir}'")
    for folder in filter(None, (config.output_dir, config.models_dir)):
        check_folder(folder)
    for run in chosen:
        _refuse_another(run, _copy_of(run, config.output_dir))
    with disk_errors(config.output_dir, UsageError):
        config.output_dir.mkdir(parents=True, exist_ok=True)
        for error in broken:
            print(f"skipped {one_line(error, longest=0)}", file=sys.stderr)
        there = console(sys.stderr)
        with locked(config.output_dir), progress(not there.is_terminal, console=there, transient=True) as bar:
            for run in bar.track(chosen, description="copying"):
                _copy(run, _copy_of(run, config.output_dir), config.largest * 1000)
    print(f"{len(chosen)} runs in {config.output_dir}")
    if config.models_dir is not None:
        written = [name for name, of_method in runs.items() if _write_network(of_method[0], config.models_dir, name)]
        print(f"{len(written)} networks in {config.models_dir}")


def _write_network(run: Run, folder: Path, name: str) -> bool:
    """Write the network of a run, if it has a model."""
    from agents import load_agent  # noqa: PLC0415 - loads PyTorch

    model = run.folder / MODEL_FILE
    if not model.exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    load_agent(model, device="cpu").save_weights(folder / f"{name}.safetensors")
    return True


def thinned(lines: Sequence[dict[str, float]], room: int) -> list[str]:
    """The lines of a file of metrics that has at most `room` bytes.

    All lines with evaluations are kept, and the last line; of the others as many as fit, evenly spaced, every number
    rounded to five digits. If not even the evaluations fit, they are thinned in the same way.

    Args:
        lines: all lines.
        room: bytes.
    """
    texts = [f"{json.dumps({key: _rounded(value) for key, value in line.items()})}\n" for line in lines]
    needed = [any(key.startswith(EVALUATION) for key in line) for line in lines]
    if needed:
        needed[-1] = True
    stride = 1
    while stride <= 2 * max(len(texts), 1):
        kept = [text for i, (text, need) in enumerate(zip(texts, needed, strict=True)) if need or i % stride == 0]
        if sum(map(len, kept)) <= room:
            return kept
        stride += 1
    first, last = texts[:-1], texts[-1:]
    for stride in range(2, len(texts) + 1):
        kept = first[::stride] + last
        if sum(map(len, kept)) <= room:
            return kept
    return []


def _rounded(value: float) -> float:
    """A number to five digits; integers stay as they are."""
    return value if float(value).is_integer() else float(f"{value:.{DIGITS}g}")


def _copy_of(run: Run, output_dir: Path) -> Path:
    return output_dir / run.name / f"seed_{run.seed}"


def _refuse_another(run: Run, folder: Path) -> None:
    """Make sure that the folder is free, or holds a copy of a run with the same settings."""
    if not (folder / CONFIG_FILE).exists():
        return
    try:
        before = read_config(folder)["settings"]
    except BrokenRunError as error:
        raise UsageError(f"{one_line(error, longest=0)}; move it away") from None
    changed = [name for name, value in run.settings.items() if before.get(name) != value]
    if changed:
        raise UsageError(
            f"'{folder}' holds a run with other settings ({', '.join(changed)}); give another --output-dir"
        )


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
