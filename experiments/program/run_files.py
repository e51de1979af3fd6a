"""Reading the files of a run folder, which a stranger may have written.

Whoever reads config.json, evaluation.json or metrics.jsonl does it here: the analysis, the report, `compare_weights`,
`plot_recording` and the sweep. Every size, number and text is bounded and checked in this module, so that no other
module has to. Files must be regular ones; symbolic links, named pipes and devices are not opened. What is not a file of
this project is a `BrokenRunError`, whose message is one line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.files import is_number, one_line, open_regular, parse_numbers

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"

STEP = "env_step"  # the key that every line of metrics has: environment steps, over all tasks

FORMER_SOLVED_AT = 200.0  # the return that counted as solved in the runs of earlier releases, which do not say it

LARGEST = 1e15  # no run has larger numbers
MOST_TASKS = 100
LONGEST_NAME = 100  # characters in the name of a run, a task or a setting
LONGEST_TEXT = 1_000  # characters in the value of a setting
MOST_VALUES = 10_000  # in one config.json
LARGEST_CONFIG = 2**20  # bytes
LARGEST_EVALUATION = 2**24  # bytes
LARGEST_METRICS = 2**27  # bytes
LONGEST_LINE = 2**22  # bytes in a line of metrics
MOST_KEYS = 50_000  # in all lines of metrics together
LONGEST_KEY = 3 * LONGEST_NAME

Columns = Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
"""For each key of a file of metrics: the numbers of the lines that have it, and the values in these lines."""


class BrokenRunError(ValueError):
    """A file in a run folder cannot be read as what it should be; the message is one line."""


def read_config(folder: Path) -> dict[str, Any]:
    """What ran in `folder`, with which settings.

    Returns:
        `run` (the name of the method, with `_blind` for the blind variant), `tasks` (their names, or None), `method`,
        `agent`, `balancer` and `base_environment` (texts, or None), `versions` (texts by package) and `settings`. The
        settings are plain data; `results_dir` is left out, because the folder may have been moved since.

    Raises:
        BrokenRunError: the file is missing, too large, or not what this project writes.
    """
    content = read_json(folder, CONFIG_FILE, LARGEST_CONFIG)
    with _defects_of(folder / CONFIG_FILE):
        settings = dict(_mapping("settings", content.get("settings")))
        settings.pop("results_dir", None)
        left = _plain("settings", settings, MOST_VALUES)
        for name, check in SETTINGS.items():
            if name in settings:
                check(f"settings.{name}", settings[name])
        _whole("settings.seed", settings.get("seed"), 0)
        versions = content.get("versions")
        texts = {name: content.get(name) for name in ("method", "agent", "balancer", "base_environment")}
        _plain("", texts | {"versions": versions}, left)
        for name, value in texts.items():
            if value is not None:
                _name(name, value)
        return {
            "run": _name("run", content.get("run")),
            "tasks": _tasks(content, settings),
            **texts,
            "versions": dict(versions) if isinstance(versions, dict) else {},
            "settings": settings,
        }


def read_evaluation(folder: Path, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The final evaluation of the run in `folder`.

    Args:
        folder: the folder of the run.
        config: the run's configuration, as `read_config` gave it; the evaluation must belong to it. Default: this is
            not checked.

    Returns:
        The contents of evaluation.json: `mean`, `worst_task` with its `mean`, and for each of the `tasks` its `mean`,
        `success_rate` (None if nothing says what success is), `solved_at` (None if no return counts as solved) and, but
        for old runs, `returns`. `parameters` is missing in old runs. `exact` is false for a run that was continued on
        another kind of processor.

    Raises:
        BrokenRunError: the file is missing, too large, not what this project writes, or of another run.
    """
    content = read_json(folder, EVALUATION_FILE, LARGEST_EVALUATION)
    with _defects_of(folder / EVALUATION_FILE):
        _number("mean", content.get("mean"))
        _number("worst_task.mean", _mapping("worst_task", content.get("worst_task")).get("mean"))
        _flag("exact", content.get("exact", True))
        if "parameters" in content:
            _whole("parameters", content["parameters"])
        tasks = _mapping("tasks", content.get("tasks"))
        _names("tasks", list(tasks))
        for task, result in tasks.items():
            _number(f"mean of {task}", _mapping(f"result of {task}", result).get("mean"))
            if "success_rate" not in result or result["success_rate"] is not None:
                _number(f"success_rate of {task}", result.get("success_rate"), 0, 1)
            if result.setdefault("solved_at", FORMER_SOLVED_AT) is not None:
                _number(f"solved_at of {task}", result["solved_at"])
            returns = result.get("returns", [])
            if not isinstance(returns, list):
                raise ValueError(f"returns of {task} are {_shown(returns)}; they must be a list")
            for value in returns:
                _number(f"a return of {task}", value)
        if config is not None:
            _check_settings(content, config, folder)
    return content


def digest_of(description: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    """A digest of what a run is: its method, and its settings but for those `without` an influence on its results.

    An evaluation.json names the digest of the config.json that it belongs to; see `settings_record`.
    """
    settings = {name: value for name, value in description["settings"].items() if name not in without}
    bound = {"method": description.get("method"), "run": description.get("run"), "settings": settings}
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()


def settings_record(description: Mapping[str, Any], without: Sequence[str]) -> dict[str, Any]:
    """What evaluation.json says about the settings that it belongs to, for `read_evaluation` to compare."""
    free = sorted({*without, "results_dir"})
    return {"of_settings": {"sha256": digest_of(json.loads(json.dumps(description)), free), "without": free}}


def _check_settings(evaluation: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    record = evaluation.get("of_settings")
    if record is None:
        return  # written by a release that recorded no settings
    without = _mapping("of_settings", record).get("without")
    if not isinstance(without, list) or len(without) > MOST_VALUES or not all(isinstance(n, str) for n in without):
        raise ValueError(f"of_settings.without is {_shown(without)}; it must be a list of names")
    if record.get("sha256") != digest_of(config, without):
        raise ValueError(f"it belongs to a run with other settings than those of '{folder / CONFIG_FILE}'")


def read_lines(path: Path, *, follow_link: bool = False, being_written: bool = False) -> Iterator[dict[str, float]]:
    """The lines of a file of metrics, up to where it ends at the moment.

    Args:
        path: the file.
        follow_link: whether the path may be a symbolic link, as one that the user has typed. Default False.
        being_written: whether the last line may be half written, and is left out then. Default False: it is an error.

    Raises:
        BrokenRunError: the file cannot be opened, is too large, or a line is not an object of numbers.
    """
    try:
        with open_regular(path, follow_link=follow_link) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_METRICS:
                raise ValueError(f"it has {size:,} bytes; files of more than {LARGEST_METRICS:,} are not read")
            number = 0
            while file.tell() < size and (text := file.readline(LONGEST_LINE + 1)):
                number += 1
                if len(text) > LONGEST_LINE:
                    raise ValueError(f"line {number} has more than {LONGEST_LINE:,} bytes")
                try:
                    line = parse_numbers(text)
                except ValueError as error:
                    if being_written and not text.endswith(b"\n"):
                        return
                    raise ValueError(f"line {number}: {error}") from None
                yield line
    except OSError as error:
        raise BrokenRunError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise BrokenRunError(f"{path}: {one_line(error)}") from None


def read_tail(path: Path, most_bytes: int = 2**15) -> list[dict[str, float]]:
    """The last whole lines of a file of metrics that is being written, without values that are NaN or above 1e15.

    A file that cannot be read has no lines.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            texts = file.read(most_bytes).splitlines(keepends=True)
    except OSError:
        return []
    lines = []
    for text in texts[size > most_bytes :]:  # the beginning of the first line may be cut off
        with suppress(ValueError):  # the last line may be half written
            lines.append({key: value for key, value in parse_numbers(text).items() if abs(value) < LARGEST})
    return lines


def read_columns(path: Path, *, follow_link: bool = False, being_written: bool = False) -> Columns:
    """The metrics of a run, by key. The arguments are those of `read_lines`.

    Columns take a tenth of the memory of the lines. Values that are NaN, infinite or above 1e15 are left out.

    Raises:
        BrokenRunError: as `read_lines`; or there are too many keys, or environment steps go backwards.
    """
    rows: dict[str, array[int]] = defaultdict(lambda: array("q"))
    values: dict[str, array[float]] = defaultdict(lambda: array("d"))
    for number, line in enumerate(read_lines(path, follow_link=follow_link, being_written=being_written)):
        for key, value in line.items():
            if abs(value) < LARGEST:
                if key not in rows:
                    _check_key(path, key, len(rows))
                rows[key].append(number)
                values[key].append(value)
    columns = {key: (np.array(rows[key], np.int64), np.array(values[key], np.float64)) for key in rows}
    if STEP in columns and (np.diff(columns[STEP][1], prepend=0) < 0).any():
        raise BrokenRunError(f"{path}: its environment steps go backwards")
    return columns


def _check_key(path: Path, key: str, number: int) -> None:
    if len(key) > LONGEST_KEY or not key.isprintable():
        raise BrokenRunError(f"{path}: {_shown(key)} is no name of a metric")
    if number >= MOST_KEYS:
        raise BrokenRunError(f"{path}: it has more than {MOST_KEYS:,} different keys")


# ---------------------------------------------------------------------------------------------------- JSON and checks


def read_json(folder: Path, name: str, most: int = LARGEST_CONFIG) -> dict[str, Any]:
    """The object in a file of JSON of at most `most` bytes.

    Raises:
        BrokenRunError: the file is missing, irregular, too large, or holds no object.
    """
    path = folder / name
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it has more than {most:,} bytes")
        return dict(_mapping("the content", json.loads(content)))
    except FileNotFoundError:
        raise BrokenRunError(f"{folder}: not finished ({name} is missing)") from None
    except OSError as error:
        raise BrokenRunError(f"{path}: {error.strerror or error}") from None
    except RecursionError:
        raise BrokenRunError(f"{path}: it is nested too deeply") from None
    except ValueError as error:
        raise BrokenRunError(f"{path}: {one_line(error)}") from None


@contextmanager
def _defects_of(path: Path) -> Iterator[None]:
    """Name the file in the errors of the block."""
    try:
        yield
    except ValueError as error:
        raise BrokenRunError(f"{path}: {error}") from None


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shown(value)}; it must be an object")
    return value


def _number(name: str, value: object, least: float = -LARGEST, most: float = LARGEST) -> None:
    if isinstance(value, bool) or not is_number(value) or not least <= value <= most:
        raise ValueError(f"{name} is {_shown(value)}; it must be a number from {least:g} to {most:g}")


def _whole(name: str, value: object, least: int = 1) -> None:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name} is {_shown(value)}; it must be an integer from {least}")


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_shown(value)}; it must be true or false")


def _name(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > LONGEST_NAME or not value.isprintable():
        raise ValueError(f"{name} is {_shown(value)}; it must be a printable text of 1 to {LONGEST_NAME} characters")
    return value


def _names(name: str, value: object) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_TASKS:
        many = f"{len(value):,} names" if isinstance(value, list) else _shown(value)
        raise ValueError(f"{name} are {many}; they must be 1 to {MOST_TASKS} names")
    for entry in value:
        _name(f"a name in {name}", entry)


def _tasks(content: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str] | None:
    """The names of the tasks. The settings hold the words of the user, of which one may stand for several tasks."""
    if (environments := content.get("environments")) is None:
        return settings.get("tasks")
    names = list(_mapping("environments", environments))
    _names("environments", names)
    return names


def _widths(name: str, value: object) -> None:
    if not isinstance(value, list):
        raise ValueError(f"{name} are {_shown(value)}; they must be a list of integers")
    for index, width in enumerate(value):
        _whole(f"{name}[{index}]", width)


def _variant(name: str, value: object) -> None:
    if value not in ("aware", "blind"):
        raise ValueError(f"{name} is {_shown(value)}; it must be aware or blind")


SETTINGS: Mapping[str, Callable[[str, object], object]] = {
    **dict.fromkeys(("total_steps", "embedding_dim", "width", "depth", "num_bins"), _whole),
    "v_max": _number,
    "layer_norm": _flag,
    "hidden_dims": _widths,
    "variant": _variant,
    "tasks": _names,
}
"""The settings that are used for more than to be shown, and how each is checked where it is there."""


def _plain(name: str, value: object, left: int, depth: int = 4) -> int:
    """Check that `value` is plain data of bounded size: `left` values at most. Returns how many are left."""
    if left <= 0:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"{name} is nested too deeply")
        left -= 1
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in pairs:
            left = _plain(f"{name}.{_name(f'a name in {name}', str(key))}", entry, left, depth - 1)
        return left
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT or not value.isprintable():
            raise ValueError(f"{name} is {_shown(value)}; it must be a printable text of {LONGEST_TEXT} characters")
    elif value is not None and not isinstance(value, bool) and not (is_number(value) and math.isfinite(value)):
        raise ValueError(f"{name} is {_shown(value)}; it must be a finite number of 64 bits")
    return left - 1


def _shown(value: object) -> str:
    """A value in a message."""
    if value is None:
        return "missing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and not is_number(value):
        return "an integer of more than 64 bits"  # Python may refuse to write it in digits
    return one_line(repr(value), longest=60)
