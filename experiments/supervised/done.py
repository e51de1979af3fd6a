"""The trainings of a comparison that are done, in a file to which each is added as it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.program.flags import UsageError
from experiments.program.saved_run import differences
from experiments.program.stopping import StoppedError, disk_errors
from mtrl.files import is_number, one_line, open_regular, replacing

DONE_FILE = "unfinished.jsonl"
LARGEST_FILE = 2**28  # bytes; 10,000 seeds of ten balancers with 60 epochs take half of it
ANEW = "give --existing restart to start anew"


@dataclass(frozen=True)
class Training:
    """What a comparison keeps of one training.

    Attributes:
        scores: the score of each task after the last epoch.
        curve: the mean score over tasks after each epoch.
    """

    scores: list[float]
    curve: list[float]


class DoneTrainings:
    """The trainings in the file `unfinished.jsonl` of a folder, by the balancer's word and the seed.

    The first line of the file describes the settings and the versions of the packages, and every other line is one
    training. A last line that was not written to its end counts as not there.

    Args:
        folder: the folder of the comparison, which is locked.
        description: the settings and versions, as JSON holds them. The file is used only if it has the same ones.
        num_tasks: T, the number of scores of a training.
        anew: whether to throw away what is in the file.

    Raises:
        UsageError: the file is damaged or belongs to other settings or versions, or it cannot be read or written.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any], num_tasks: int, anew: bool = False) -> None:
        self._path = folder / DONE_FILE
        self._num_tasks = num_tasks
        self._done: dict[tuple[str, int], Training] = {}
        with disk_errors(folder, UsageError):
            lines = [] if anew or not self._path.exists() else self._lines()
            if lines:
                self._read(lines, description)
            else:
                lines = [json.dumps({"description": description})]
            with replacing(self._path) as file:  # without the line that was not written to its end
                file.write("".join(f"{line}\n" for line in lines).encode())

    def __len__(self) -> int:
        return len(self._done)

    def get(self, balancer: str, seed: int) -> Training | None:
        """The training of a balancer with a seed, or None if it is not done."""
        return self._done.get((balancer, seed))

    def add(self, balancer: str, seed: int, training: Training) -> None:
        """Add a training to the file.

        Raises:
            StoppedError: the file cannot be written to.
        """
        self._done[balancer, seed] = training
        line = {"balancer": balancer, "seed": seed, "scores": training.scores, "curve": training.curve}
        with disk_errors(self._path.parent, StoppedError), open_regular(self._path, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")

    def _lines(self) -> list[str]:
        with open_regular(self._path) as file:
            content: bytes = file.read(LARGEST_FILE)
        *lines, _ = content.decode(errors="replace").split("\n")
        return lines

    def _read(self, lines: list[str], description: Mapping[str, Any]) -> None:
        try:
            before = json.loads(lines[0])["description"]
            now = json.loads(json.dumps(description))
            changed = differences(_flat(before), _flat(now))
            for line in [] if changed else lines[1:]:
                entry = json.loads(line)
                training = Training(entry["scores"], entry["curve"])
                self._check(entry["balancer"], entry["seed"], training)
                self._done[entry["balancer"], entry["seed"]] = training
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            problem = one_line(f"{type(error).__name__}: {error}")
            raise UsageError(f"cannot continue from '{self._path}': {problem}; {ANEW}") from None
        if changed:
            what = one_line(", ".join(changed), 2_000)
            other = f"'{self._path.parent}' holds an unfinished comparison with other settings: {what}"
            raise UsageError(f"{other}; repeat its settings to continue it, or {ANEW}")

    def _check(self, balancer: object, seed: object, training: Training) -> None:
        numbers = [*training.scores, *training.curve]
        whole = isinstance(seed, int) and isinstance(balancer, str) and all(map(is_number, numbers))
        if not whole or len(training.scores) != self._num_tasks:
            raise ValueError("a line is not of a training")


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under names such as `training.epochs`, and the rest of the description as it is."""
    settings = {
        f"{section}.{key}": value
        for section, entries in description["settings"].items()
        for key, value in entries.items()
    }
    return {**description, **settings, "settings": None}
