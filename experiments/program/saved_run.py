"""An unfinished run that can be continued: reading its checkpoint, and what must be as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtrl
from experiments.program.run_files import METRICS_FILE
from mtrl.files import one_line, open_regular


@dataclass(frozen=True)
class SavedRun:
    """An unfinished run that can be continued.

    Attributes:
        path: its checkpoint.
        state: the contents of the checkpoint.
    """

    path: Path
    state: dict[str, Any]


def read_checkpoint(path: Path, kind: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint in `path`.

    Args:
        path: the file.
        kind: the word that the checkpoints of the program carry.
        description: the description of the run that is about to begin.

    Raises:
        CheckpointError: the checkpoint is damaged, belongs to another program, or does not go with the metrics beside
            it.
        OSError: the file cannot be read.
    """
    state: dict[str, Any] = mtrl.checkpoint.load(path)
    if "description" not in state and "settings" in state:  # as the world model wrote it in earlier versions
        state["description"] = {**description, "settings": state["settings"]}
    length, states = state.get("metrics_length", 0), mtrl.states
    try:
        parts = {"kind": state.get("kind"), "steps": state.get("steps", 0), "metrics_length": length}
        form = {"kind": kind, "steps": states.Whole(), "metrics_length": states.Whole()}
        states.check_form("it", parts, form)
        states.check_form("its description", state.get("description"), states.AtLeast(settings=dict))
        versions = state["description"].get("versions", {})
        states.check_form("its versions", versions, states.Each(str, dict))
        states.check_form("its arithmetic", state.get("arithmetic", {}), states.Each(str, dict))
        states.check_form("exact", state.get("exact", True), bool)
        json.dumps(state["description"])
    except (ValueError, TypeError) as error:
        reason = f"it is not of a run in training ({one_line(error)})"
        raise mtrl.checkpoint.CheckpointError(f"cannot continue from '{path}': {reason}") from None
    if not _ends_a_line(path.with_name(METRICS_FILE), length):
        lost = f"'{path.with_name(METRICS_FILE)}' has lost lines since"
        raise mtrl.checkpoint.CheckpointError(f"cannot continue from '{path}': {lost}")
    return state


def differences(before: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str] = ()) -> list[str]:
    """What has changed between two sets of settings, each in words, such as `gamma was 0.99 and is 0.5`.

    Args:
        before: the settings of the run that is there.
        now: the settings of the run that is about to begin.
        free: names of settings that may differ.
    """
    return [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in dict.fromkeys((*before, *now))
        if name not in free and before.get(name) != now.get(name)
    ]


def binding(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a run must keep to be continued, under one level of names."""
    method = {"method": description["method"]} if "method" in description else {}
    return {**method, **description["settings"], **description.get("versions", {})}


def _ends_a_line(path: Path, length: int) -> bool:
    """Whether the first `length` bytes of a file are there and are whole lines.

    Raises:
        OSError: the file cannot be read.
    """
    if not length:
        return True
    try:
        with open_regular(path) as file:
            file.seek(length - 1)
            return bool(file.read(1) == b"\n")
    except FileNotFoundError:
        return False
