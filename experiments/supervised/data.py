"""The samples for training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.program.flags import UsageError
from experiments.supervised import multi_mnist, own_data
from experiments.supervised.settings import Settings
from mtrl.models import generate_synthetic_multi_task_data


@dataclass(frozen=True)
class Samples:
    """N inputs, and their targets in each task."""

    features: Tensor  # (N, input_dim)
    targets: list[Tensor]  # one tensor (N,) per task

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor | slice) -> Samples:
        return Samples(self.features[index], [target[index] for target in self.targets])

    def to(self, device: torch.device | str) -> Samples:
        """A copy of the samples on a device."""
        return Samples(self.features.to(device), [target.to(device) for target in self.targets])


@dataclass(frozen=True)
class TaskData:
    """Training samples and validation samples of the same tasks.

    The features are `(raw - mean) / deviation`, with the mean and the standard deviation of the training samples; the
    pixels of MultiMNIST share one deviation.
    """

    train: Samples
    val: Samples
    mean: Tensor  # (input_dim,)
    deviation: Tensor  # (input_dim,)


def load_data(settings: Settings, seed: int) -> TaskData:
    """Load or generate the samples that the settings describe, split and standardise them, and check them.

    Args:
        settings: the settings of the data and of the tasks.
        seed: the seed of synthetic samples, of the split of the digits, and of the split and the pairs of MultiMNIST.

    Raises:
        UsageError: the settings ask for data that a package brings, and the package is not installed; or the targets of
            a regression are all alike, so that it has no R^2.
    """
    data = _load(settings, seed)
    for task, target in zip(settings.model.tasks, data.val.targets, strict=True):
        if task.type == "regression" and float(target.min()) == float(target.max()):
            problem = f"all validation targets of task {task.name!r} are {float(target[0]):g}, so that it has no R^2"
            raise UsageError(f"data.num_val is {len(data.val)}: with seed {seed}, {problem}")
    return data


def _load(settings: Settings, seed: int) -> TaskData:
    tasks, num_train, num_val = settings.model.tasks, settings.data.num_train, settings.data.num_val
    if settings.data.source == "digits":
        return _digits([task.name for task in tasks], num_train, num_val, seed)
    if settings.data.source == "multi_mnist":
        train, val = (
            Samples(features, [targets[task.name] for task in tasks])
            for features, targets in multi_mnist.pairs(num_train, num_val, seed)
        )
        return _standardised(train, val, by_pixel=False)
    if settings.data.source == "file":
        own = own_data.read(str(settings.data.file))
        order = torch.randperm(len(own.features), generator=torch.Generator().manual_seed(seed))
        samples = Samples(own.features, [own.targets[task.name] for task in tasks])
        return _standardised(samples[order[:num_train]], samples[order[num_train : num_train + num_val]])
    features, targets = generate_synthetic_multi_task_data(
        num_train + num_val,
        settings.model.input_dim,
        [task.num_classes for task in tasks],
        seed=seed,
        relatedness=settings.data.relatedness,
        noise=settings.data.noise,
    )
    samples = Samples(features, targets)
    return _standardised(samples[:num_train], samples[num_train:])


def _digits(tasks: Sequence[str], num_train: int, num_val: int, seed: int) -> TaskData:
    """Handwritten digits of 8 x 8 pixels. Each digit has the same share in training and in validation.

    The images are part of scikit-learn. Their source is Kaynak 1995, "Optical Recognition of Handwritten Digits",
    https://doi.org/10.24432/C50P49.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - scikit-learn is optional
        from sklearn.model_selection import train_test_split  # noqa: PLC0415
    except ImportError:
        raise UsageError("the digits need scikit-learn: pip install 'mtrl-balance[supervised]'") from None
    images, digit = load_digits(return_X_y=True)
    labels = {"digit": digit, "parity": digit % 2, "size": digit // 5}
    chosen = train_test_split(
        range(len(digit)), train_size=num_train, test_size=num_val, stratify=digit, random_state=seed
    )
    train, val = (
        Samples(torch.from_numpy(images[part]).float(), [torch.from_numpy(labels[task][part]).long() for task in tasks])
        for part in chosen
    )
    return _standardised(train, val)


def _standardised(train: Samples, val: Samples, by_pixel: bool = True) -> TaskData:
    """Standardise by the training samples: every input by its own deviation, or all by the deviation of all."""
    mean, deviation = train.features.mean(0), train.features.std(0, correction=0)
    if not by_pixel:  # a pixel that is dark in nearly every training sample would become huge where it is not
        deviation = deviation.square().mean().sqrt().expand_as(mean).clone()
    deviation[deviation == 0] = 1.0  # a pixel that is blank in every sample becomes 0
    train, val = (Samples((part.features - mean) / deviation, part.targets) for part in (train, val))
    return TaskData(train, val, mean, deviation)
