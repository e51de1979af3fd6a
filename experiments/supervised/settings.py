"""The settings of a supervised run: the sections of its YAML file, with their defaults and limits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import PurePath
from typing import Any, Literal

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
TaskType = Literal["classification", "regression"]
Source = Literal["synthetic", "digits", "multi_mnist", "file"]
Option = str | int | float | bool

LARGEST_SEED = 2**32 - 1  # scikit-learn takes no larger one
LARGEST_RATE = 1e6  # a far larger one would make Adam's arithmetic overflow
MOST_NUMBERS = 2**28  # in all inputs, in all outputs, and in the gradients of all tasks; each takes up to a gigabyte
MOST_CLASSES = 1_000

BASELINE = "equal"  # the balancer that others are compared with
MEAN, WORST = "mean", "worst task"  # columns of every table, beside the tasks
NUM_IMAGES, NUM_DIGITS = 1_797, 10  # sizes of scikit-learn's digits


class SettingError(ValueError):
    """A setting is out of range.

    Attributes:
        key: the setting's section and name, such as `training.epochs`.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key} {problem}")
        self.key = key


@dataclass(frozen=True)
class LoggingSettings:
    """The section `logging`."""

    level: Level = "INFO"
    file: str | None = "logs/app.log"  # a path within the run's folder; null writes no log file


@dataclass(frozen=True)
class TaskSettings:
    """One entry of `model.tasks`."""

    name: str
    type: TaskType = "classification"
    num_classes: int | None = None  # None for a regression

    @property
    def metric(self) -> str:
        """The task's score: `accuracy` for a classification, `r2` for a regression. Higher is better."""
        return "accuracy" if self.type == "classification" else "r2"

    @property
    def kind(self) -> str:
        """The type in words: `10 classes` or `regression`."""
        return f"{self.num_classes} classes" if self.type == "classification" else "regression"


@dataclass(frozen=True)
class ModelSettings:
    """The section `model`."""

    input_dim: int = 16
    shared_hidden: tuple[int, ...] = (64, 64)
    shared_dim: int = 32
    tasks: tuple[TaskSettings, ...] = (
        TaskSettings("task_a", "classification", 3),
        TaskSettings("task_b", "classification", 2),
    )


@dataclass(frozen=True)
class TrainingSettings:
    """The section `training`."""

    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 1e-3
    loss_weights: tuple[float, ...] | None = None  # None means 1 for every task
    balancer: str = "equal"
    balancer_options: dict[str, Option] = field(default_factory=dict)
    guidance_share: float = (
        0.1  # share of the training samples that AIM holds out; other balancers train on all samples
    )


@dataclass(frozen=True)
class DataSettings:
    """The section `data`."""

    source: Source = "synthetic"
    file: str | None = None  # of the source `file`; its samples and tasks are the user's
    random_seed: int = 42
    num_train: int = 800
    num_val: int = 200
    relatedness: float = 0.5  # used for synthetic data only
    noise: float = 0.1  # used for synthetic data only

    @property
    def name(self) -> str:
        """The source; for the source `file`, the file's name without its ending."""
        return self.source if self.file is None else re.sub(r"[^\w.-]", "_", PurePath(self.file).stem)


@dataclass(frozen=True)
class Settings:
    """All sections."""

    logging: LoggingSettings = LoggingSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = field(default_factory=TrainingSettings)
    data: DataSettings = DataSettings()

    def updated(self, values: Mapping[str, Mapping[str, Any]]) -> Settings:
        """A copy with these values, which are given by section and key."""
        return replace(self, **{name: replace(getattr(self, name), **section) for name, section in values.items()})

    def check(self) -> None:
        """Raise `SettingError` for the first setting that is out of range."""
        for key, value, low, high in self._bounds():
            if not low <= value <= high:
                limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                raise SettingError(key, f"is {value}; it must be {limits}")
        if not 0 < (rate := self.training.learning_rate) <= LARGEST_RATE:
            raise SettingError("training.learning_rate", f"is {rate}; it must be above 0 and at most {LARGEST_RATE:g}")
        if not 0 < self.training.guidance_share < 1:
            value = self.training.guidance_share
            raise SettingError("training.guidance_share", f"is {value}; it must be above 0 and below 1")
        self._check_tasks()
        self._check_data()
        self._check_memory()
        weights, tasks = self.training.loss_weights, self.model.tasks
        if weights is not None and len(weights) != len(tasks):
            raise SettingError("training.loss_weights", f"has {len(weights)} weights for {len(tasks)} tasks")
        if self.logging.file is not None:
            path = PurePath(self.logging.file)
            dotted = any("." in folder for folder in path.parts[:-1])  # as the names of the run's own files are
            if path.is_absolute() or dotted or path.suffix != ".log" or not str(path).isprintable():
                place = "a path within the run's folder that ends in .log, with no dot in the names of its folders"
                problem = f"is {self.logging.file!r}; it must be {place}"
                raise SettingError("logging.file", problem)

    def as_json(self) -> dict[str, Any]:
        """The settings in the form of config.json."""
        return asdict(self)

    def _bounds(self) -> Iterator[tuple[str, float, float, float]]:
        model, training, data = self.model, self.training, self.data
        yield "model.input_dim", model.input_dim, 1, 4_096
        yield "model.shared_dim", model.shared_dim, 1, 10_000
        for index, width in enumerate(model.shared_hidden):
            yield f"model.shared_hidden[{index}]", width, 1, 10_000
        yield "training.epochs", training.epochs, 1, 1_000_000
        yield "training.batch_size", training.batch_size, 1, 10_000_000
        for index, weight in enumerate(training.loss_weights or ()):
            yield f"training.loss_weights[{index}]", weight, 0, math.inf
        yield "data.random_seed", data.random_seed, 0, LARGEST_SEED
        yield "data.num_train", data.num_train, 2, 10_000_000
        yield "data.num_val", data.num_val, 2, 10_000_000
        yield "data.relatedness", data.relatedness, 0, 1
        yield "data.noise", data.noise, 0, 1_000

    def _check_data(self) -> None:
        samples, tasks = self.data.num_train + self.data.num_val, self.model.tasks
        if (self.data.source == "file") != (self.data.file is not None):
            needs = "source file needs a path" if self.data.file is None else "needs data.source file"
            raise SettingError("data.file", f"is {self.data.file!r} and data.source is {self.data.source}; {needs}")
        if self.data.source in ("digits", "multi_mnist"):
            self._check_pictures(DEFAULTS[self.data.source].model)
        elif self.data.source == "synthetic" and self.model.input_dim <= len(tasks):
            problem = f"is {self.model.input_dim}; synthetic data of {len(tasks)} tasks need at least {len(tasks) + 1}"
            raise SettingError("model.input_dim", problem)
        if self.data.source == "digits":
            self._check_split()
        for index, task in enumerate(tasks):
            if (task.num_classes or 0) > samples:
                problem = f"is {task.num_classes}, more than the {samples} samples"
                raise SettingError(f"model.tasks[{index}].num_classes", problem)

    def _check_pictures(self, there: ModelSettings) -> None:
        """Compare the model's input and tasks with those of the data set, which `there` has."""
        pictures = "digits" if self.data.source == "digits" else "pictures of multi_mnist"
        if self.model.input_dim != there.input_dim:
            problem = f"is {self.model.input_dim}; the {pictures} have {there.input_dim} pixels"
            raise SettingError("model.input_dim", problem)
        for index, task in enumerate(self.model.tasks):
            if task not in there.tasks:
                kinds = ", ".join(f"{task.name} ({task.kind})" for task in there.tasks)
                raise SettingError(f"model.tasks[{index}]", f"is no task of the {pictures}; they are {kinds}")

    def _check_split(self) -> None:
        sizes = {"num_train": self.data.num_train, "num_val": self.data.num_val}
        for name, size in sizes.items():
            if size < NUM_DIGITS:
                raise SettingError(f"data.{name}", f"is {size}; it must be at least {NUM_DIGITS}, one of each digit")
        if sum(sizes.values()) > NUM_IMAGES:
            problem = f"and data.num_val are {sum(sizes.values())} together; there are {NUM_IMAGES} digits"
            raise SettingError("data.num_train", problem)

    def _check_memory(self) -> None:
        inputs = (self.data.num_train + self.data.num_val) * self.model.input_dim
        if inputs > MOST_NUMBERS:
            raise SettingError("data.num_train", f"makes inputs of {inputs} numbers; {MOST_NUMBERS} are the most")
        outputs = self.data.num_val * sum(task.num_classes or 1 for task in self.model.tasks)
        if outputs > MOST_NUMBERS:
            raise SettingError("data.num_val", f"makes outputs of {outputs} numbers; {MOST_NUMBERS} are the most")
        widths = [self.model.input_dim, *self.model.shared_hidden, self.model.shared_dim]
        gradients = sum(a * b for a, b in pairwise(widths)) * len(self.model.tasks)
        if gradients > MOST_NUMBERS:
            problem = f"makes task gradients of {gradients} numbers; {MOST_NUMBERS} are the most"
            raise SettingError("model.shared_hidden", problem)

    def _check_tasks(self) -> None:
        tasks = self.model.tasks
        for key, count, low, high in (
            ("model.tasks", len(tasks), 1, 100),
            ("model.shared_hidden", len(self.model.shared_hidden), 0, 20),
        ):
            if not low <= count <= high:
                raise SettingError(key, f"has {count} entries; it must have between {low} and {high}")
        names: set[str] = set()
        for index, task in enumerate(tasks):
            key = f"model.tasks[{index}]"
            if not re.fullmatch(
                r"[^\W_][\w .-]{0,99}", task.name
            ):  # other characters have a meaning in tables and figures
                problem = "must begin with a letter or digit, go on with these or '_', '-', '.', ' ', and not be long"
                raise SettingError(f"{key}.name", problem)
            if task.name in names:
                raise SettingError(f"{key}.name", f"is {task.name!r}; there is a task of that name before it")
            if task.name in (MEAN, WORST):
                raise SettingError(f"{key}.name", f"is {task.name!r}, which means something else in tables")
            names.add(task.name)
            if task.type == "regression" and task.num_classes is not None:
                raise SettingError(f"{key}.num_classes", "is for classifications; this task is a regression")
            if task.type == "classification" and not 2 <= (task.num_classes or 0) <= MOST_CLASSES:
                limits = f"it must be between 2 and {MOST_CLASSES}"
                raise SettingError(f"{key}.num_classes", f"is {task.num_classes}; {limits}")


DEFAULTS: dict[Source, Settings] = {
    "synthetic": Settings(),
    "file": Settings(data=DataSettings(source="file")),  # `own_data.settings_of` has those of a file
    # There are few samples and a small encoder, because with more of either every balancer gets nearly all answers
    # right. There are so many epochs that scores no longer rise, so that a balancer that only learns faster does not
    # seem to learn better.
    "digits": Settings(
        model=ModelSettings(
            input_dim=64,
            shared_hidden=(16,),
            shared_dim=8,
            tasks=(
                TaskSettings("digit", "classification", 10),
                TaskSettings("parity", "classification", 2),
                TaskSettings("size", "classification", 2),
            ),
        ),
        training=TrainingSettings(epochs=60, learning_rate=3e-3),
        data=DataSettings(source="digits", num_train=200, num_val=1_000),
    ),
    # The first two tasks are those of Sabour et al. (2017). The third is a regression in its own unit, as a user would
    # bring it: its loss begins at about 17, those of the digits at 2.3.
    "multi_mnist": Settings(
        model=ModelSettings(
            input_dim=324,
            shared_hidden=(64,),
            shared_dim=16,
            tasks=(
                TaskSettings("left", "classification", 10),
                TaskSettings("right", "classification", 10),
                TaskSettings("sum", "regression"),
            ),
        ),
        training=TrainingSettings(epochs=30, batch_size=64, learning_rate=3e-3),
        data=DataSettings(source="multi_mnist", num_train=2_000, num_val=1_000),
    ),
}
