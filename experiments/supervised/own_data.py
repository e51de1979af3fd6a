"""Samples of the user's own: a file of NumPy arrays, `features` and one array of targets for each task."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.program.flags import UsageError
from experiments.supervised.settings import (
    MOST_CLASSES,
    MOST_NUMBERS,
    DataSettings,
    ModelSettings,
    SettingError,
    Settings,
    TaskSettings,
)
from mtrl.files import one_line, open_regular

FEATURES = "features"
LARGEST = 1e15  # its square, and a sum of squares, is a number in float32
FOR_TRAINING = 0.8  # share of the samples, where the settings do not say how many


@dataclass(frozen=True)
class OwnData:
    """The samples in a file.

    Attributes:
        features: (N, input_dim) in float32.
        targets: by task, classes (N,) in int64 or numbers (N,) in float32.
        sha256: the file's digest.
    """

    features: Tensor
    targets: dict[str, Tensor]
    sha256: str

    @property
    def tasks(self) -> tuple[TaskSettings, ...]:
        """The tasks: whole numbers are the classes of a classification, other numbers the targets of a regression."""
        return tuple(
            TaskSettings(name, "regression")
            if target.is_floating_point()
            else TaskSettings(name, "classification", max(2, int(target.max()) + 1))
            for name, target in self.targets.items()
        )


def settings_of(file: str) -> Settings:
    """The default settings for a file: its inputs, its tasks, and four fifths of its samples for training.

    Raises:
        UsageError: the file cannot be read, or its arrays are not features and targets.
    """
    data = read(file)
    samples, input_dim = data.features.shape
    train = round(FOR_TRAINING * samples)
    return Settings(
        model=replace(ModelSettings(), input_dim=input_dim, tasks=data.tasks),
        data=DataSettings(source="file", file=file, num_train=train, num_val=samples - train),
    )


def check(settings: Settings) -> None:
    """Compare the settings with the file that they name.

    Raises:
        SettingError: the file has other inputs, other tasks or fewer samples.
        UsageError: as `settings_of`.
    """
    file, model = str(settings.data.file), settings.model
    data = read(file)
    samples, input_dim = data.features.shape
    if model.input_dim != input_dim:
        raise SettingError(
            "model.input_dim", f"is {model.input_dim}; the samples in {file!r} have {input_dim} features"
        )
    for index, task in enumerate(model.tasks):
        if task not in data.tasks:
            there = ", ".join(f"{task.name} ({task.kind})" for task in data.tasks)
            raise SettingError(f"model.tasks[{index}]", one_line(f"is no task of {file!r}; they are {there}"))
    if (asked := settings.data.num_train + settings.data.num_val) > samples:
        raise SettingError("data.num_train", f"and data.num_val are {asked} together; {file!r} has {samples} samples")


def read(file: str) -> OwnData:
    """Read `numpy.savez(file, features=..., task_a=..., task_b=...)`. Nothing in the file is run.

    Raises:
        UsageError: the file cannot be read, or its arrays are not features and targets. The message says what to do.
    """
    try:
        stat = Path(file).stat()
        return _read(str(Path(file).resolve()), file, (stat.st_size, stat.st_mtime_ns))
    except UsageError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        problem = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UsageError(one_line(f"cannot read {file!r}: {problem}; numpy.savez writes such files")) from None


@lru_cache(maxsize=1)
def _read(path: str, file: str, version: object) -> OwnData:
    with open_regular(path, follow_link=True) as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        opened.seek(0)
        if not zipfile.is_zipfile(opened):
            raise ValueError("it is no .npz file")
        with zipfile.ZipFile(opened) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > 8 * MOST_NUMBERS:
                raise ValueError(f"its arrays take {size} bytes; {8 * MOST_NUMBERS} are the most")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    if FEATURES not in found:
        names = ", ".join(found) or "none"
        raise UsageError(one_line(f"{file!r} has no array {FEATURES!r}; its arrays are {names}"))
    features = _features(file, found.pop(FEATURES))
    if not found:
        raise UsageError(f"{file!r} has no targets; give one array of {len(features)} numbers for each task")
    targets = {name: _targets(file, name, array, len(features)) for name, array in found.items()}
    return OwnData(features, targets, digest)


def _features(file: str, array: Any) -> Tensor:
    if array.ndim != 2 or array.dtype.kind not in "buif" or not array.size:
        shape = f"has the shape {array.shape} and the type {array.dtype}"
        raise UsageError(f"{FEATURES!r} in {file!r} {shape}; it must be numbers (samples, inputs)")
    if not np.isfinite(array).all():
        raise UsageError(f"{FEATURES!r} in {file!r} has NaN or infinity; leave these samples out, or fill them in")
    return _float32(f"{FEATURES!r} in {file!r}", array)


def _targets(file: str, name: str, array: Any, samples: int) -> Tensor:
    """Classes (N,) in int64, or numbers (N,) in float32."""
    place = one_line(f"{name!r} in {file!r}", 200)
    if array.dtype.kind not in "buif":
        what = "text" if array.dtype.kind in "US" else f"of the type {array.dtype}"
        raise UsageError(f"{place} is {what}; numpy.unique(..., return_inverse=True)[1] makes classes of labels")
    if array.shape != (samples,):
        hint = ""
        if array.ndim == 2:
            hint = "; " + ("classes of one-hot rows are array.argmax(1)" if array.shape[1] > 1 else "array[:, 0] is")
        raise UsageError(f"{place} has the shape {array.shape}; it must be ({samples},), one for each sample{hint}")
    if not np.isfinite(array).all():
        raise UsageError(f"{place} has NaN or infinity; samples without a label must be left out")
    if array.dtype.kind == "f":
        return _float32(place, array)
    if array.min() < 0 or array.max() >= MOST_CLASSES:
        limits = f"classes are counted from 0 and at most {MOST_CLASSES}"
        problem = f"has whole numbers from {array.min()} to {array.max()}; {limits}; for a regression, save floats"
        raise UsageError(f"{place} {problem}")
    return torch.from_numpy(array.astype(np.int64))


def _float32(place: str, array: Any) -> Tensor:
    if (largest := float(np.abs(array).max())) > LARGEST:
        raise UsageError(f"{place} has numbers up to {largest:.3g}; choose a unit in which {LARGEST:g} is the most")
    return torch.from_numpy(array.astype(np.float32))
