"""A shared encoder with one head per task, its losses, and synthetic data whose tasks are as related as you like.

model = MultiTaskModel(16, [64, 64], 32, [{"type": "classification", "num_classes": 3}, {"type": "regression"}])
features, targets = generate_synthetic_multi_task_data(800, 16, [3, None], seed=42)
losses = task_losses(model(features), targets)
balancer.backward(losses, model.encoder.parameters())  # or multi_task_loss(...).backward()
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "MultiTaskModel",
    "SharedEncoder",
    "TaskHead",
    "generate_synthetic_multi_task_data",
    "multi_task_loss",
    "task_losses",
]

TASK_KEYS = ("name", "type", "num_classes")
TASK_TYPES = ("classification", "regression")
STEEPNESS = 2.0  # of the tanh of a teacher: clearly bent over the range of its inputs
LARGEST_NOISE = 1_000.0  # beyond it nothing is left of the signal


class SharedEncoder(nn.Sequential):
    """An MLP from the input to the representation that all tasks share: ReLU after every hidden layer, none at the end.

    Args:
        input_dim: numbers in an input.
        hidden: widths of the hidden layers; empty for a linear encoder.
        output_dim: size of the representation.

    Shapes: (B, input_dim) to (B, output_dim).

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, input_dim: int, hidden: Sequence[int], output_dim: int) -> None:
        _check_sizes(input_dim=input_dim, hidden=min(hidden, default=1), output_dim=output_dim)
        widths = [input_dim, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths, hidden, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], output_dim))


class TaskHead(nn.Linear):
    """A linear layer from the representation to one task's outputs: the logits of its classes, or one number.

    Args:
        input_dim: size of the representation.
        num_classes: classes of a classification; None, the default, for a regression.

    Shapes: (B, input_dim) to (B, num_classes), or to (B,) for a regression.

    Raises:
        ValueError: `input_dim` is below 1 or `num_classes` below 2.
    """

    def __init__(self, input_dim: int, num_classes: int | None = None) -> None:
        _check_sizes(input_dim=input_dim)
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 2")
        super().__init__(input_dim, num_classes or 1)
        self.num_classes = num_classes

    def forward(self, representation: Tensor) -> Tensor:
        """The task's outputs."""
        outputs = super().forward(representation)
        return outputs.squeeze(-1) if self.num_classes is None else outputs


class MultiTaskModel(nn.Module):
    """A `SharedEncoder` with one `TaskHead` per task.

    Args:
        input_dim: numbers in an input.
        shared_hidden: widths of the encoder's hidden layers.
        shared_dim: size of the shared representation.
        task_configs: for each of the T tasks a mapping with the key `type`, `"classification"` or `"regression"`;
            `num_classes` for a classification; and, if you like, a `name`.

    Attributes:
        encoder: its parameters are those that a balancer balances.
        heads: one per task.
        task_names: the names, `task_<index>` where none was given.

    Raises:
        ValueError: there is no task, a size is out of range, or a task has an unknown key or type, a classification no
            `num_classes`, or a regression some. The message names the task.
    """

    def __init__(
        self,
        input_dim: int,
        shared_hidden: Sequence[int],
        shared_dim: int,
        task_configs: Sequence[Mapping[str, object]],
    ) -> None:
        super().__init__()
        if not task_configs:
            raise ValueError("task_configs is empty; a model needs at least one task")
        classes = [_num_classes(index, config) for index, config in enumerate(task_configs)]
        self.task_names = [str(config.get("name", f"task_{index}")) for index, config in enumerate(task_configs)]
        self.encoder = SharedEncoder(input_dim, shared_hidden, shared_dim)
        self.heads = nn.ModuleList(TaskHead(shared_dim, num_classes) for num_classes in classes)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Each task's outputs for `features` (B, input_dim): logits (B, num_classes), or (B,) for a regression."""
        representation = self.encoder(features)  # (B, shared_dim)
        return [head(representation) for head in self.heads]


def task_losses(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """One loss per task, each a mean over the batch: what a balancer takes.

    Cross-entropy where targets are integers, mean squared error where they are floating-point numbers.

    Args:
        outputs: of each task: logits (B, num_classes), or, for a regression, as its targets.
        targets: of each task: classes (B,), counted from 0, or floating-point numbers of any shape.

    Returns:
        T scalars, in nats and in squared units of the target.

    Raises:
        ValueError: there are not as many targets as outputs, or shapes do not go together; the message names the task.
    """
    if len(outputs) != len(targets) or not outputs:
        raise ValueError(f"got outputs of {len(outputs)} tasks and targets of {len(targets)}")
    return [_loss(task, *pair) for task, pair in enumerate(zip(outputs, targets, strict=True))]


def multi_task_loss(
    outputs: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """The weighted sum of `task_losses`, a scalar.

    Args:
        outputs: see `task_losses`.
        targets: see `task_losses`.
        weights: one per task. Default: 1 for each.

    Raises:
        ValueError: as `task_losses`; or there is not one weight per task.
    """
    losses = task_losses(outputs, targets)
    if weights is None:
        weights = [1.0] * len(losses)
    if len(weights) != len(losses):
        raise ValueError(f"got {len(weights)} weights for {len(losses)} tasks")
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()


def generate_synthetic_multi_task_data(
    num_samples: int,
    input_dim: int,
    num_classes: Sequence[int | None],
    device: torch.device | str = "cpu",
    *,
    seed: int = 0,
    relatedness: float = 0.5,
    noise: float = 0.1,
) -> tuple[Tensor, list[Tensor]]:
    """One set of inputs with a set of targets for each of T tasks, made by teachers whose features overlap as told.

    Inputs x are standard normal. Teacher t has H = input_dim // (T + 1) unit features a_th, of which it takes
    s_t = sum_h b_th tanh(2 a_th.x) with |b_t| = 1 of its own. The features are a_th = sqrt(r) e_0h + sqrt(1 - r) e_th
    over (T + 1) H orthonormal vectors e, drawn at random, so that for two tasks a_th.a_uk = r if h = k and 0 otherwise:
    with r = 1 all tasks read the same features, with r = 0 each its own.

    Scores are scaled to mean 0 and standard deviation 1 over the samples, noise is added, and a regression's target is
    the outcome scaled again; a classification's is its quantile, so that all classes are equally frequent.

    Training and validation data have the same teachers if they are slices of one call's samples.

    Args:
        num_samples: N.
        input_dim: numbers in an input, at least T + 1.
        num_classes: for each task, its number of classes, or None for a regression.
        device: where the tensors go; their values do not depend on it.
        seed: of inputs, teachers and noise. Default 0.
        relatedness: r in [0, 1], the cosine of two tasks' features. Default 0.5.
        noise: standard deviation of Gaussian noise, in units of the score's own; at most 1000. Default 0.1.

    Returns:
        Inputs (N, input_dim), float32, and for each task its targets (N,): int64 classes, or float32.

    Raises:
        ValueError: an argument is out of range, or there are fewer samples than classes.
    """
    T = len(num_classes)
    _check_sizes(num_samples=num_samples, num_tasks=T)
    if input_dim < T + 1:
        raise ValueError(f"input_dim is {input_dim}; teachers of {T} tasks need at least {T + 1}")
    if not 0 <= relatedness <= 1:
        raise ValueError(f"relatedness is {relatedness}; it must be between 0 and 1")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is {noise}; it must be at least 0 and finite")
    for classes in num_classes:
        if classes is not None and not 2 <= classes <= num_samples:
            raise ValueError(
                f"num_classes has {classes}; it must be between 2 and the number of samples, {num_samples}"
            )
    generator = torch.Generator().manual_seed(seed)
    teachers = _teacher_features(input_dim, T, relatedness, generator)  # (T, input_dim, H)
    features = torch.randn(num_samples, input_dim, generator=generator)
    targets = []
    for teacher, classes in zip(teachers, num_classes, strict=True):
        readout = functional.normalize(torch.randn(teacher.shape[1], generator=generator), dim=0)
        score = torch.tanh(STEEPNESS * features @ teacher) @ readout  # (N,)
        score = _standardised(score) + noise * torch.randn(num_samples, generator=generator)
        targets.append(_standardised(score) if classes is None else _quantiles(score, classes))
    return features.to(device), [target.to(device) for target in targets]


def _teacher_features(input_dim: int, num_tasks: int, relatedness: float, generator: torch.Generator) -> Tensor:
    """The tasks' feature vectors as columns, (T, input_dim, H): orthonormal within a task, of cosine r across tasks."""
    count = input_dim // (num_tasks + 1)
    basis, _ = torch.linalg.qr(torch.randn(input_dim, (num_tasks + 1) * count, generator=generator))
    shared, *own = basis.split(count, dim=1)
    return torch.stack([math.sqrt(relatedness) * shared + math.sqrt(1 - relatedness) * part for part in own])


def _standardised(values: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1; of a single value, 0."""
    centred = values - values.mean()
    return centred / centred.square().mean().sqrt().clamp(min=torch.finfo(values.dtype).tiny)


def _quantiles(values: Tensor, count: int) -> Tensor:
    """Which of `count` equal shares, from the lowest up, each of the values (N,) belongs to."""
    ranks = values.argsort().argsort()
    return ranks * count // len(values)


def _num_classes(index: int, config: Mapping[str, object]) -> int | None:
    """The classes of the task with this configuration, None for a regression."""
    for key in config:
        if key not in TASK_KEYS:
            raise ValueError(f"task {index} has an unknown key {key!r}; keys are {', '.join(TASK_KEYS)}")
    kind, classes = config.get("type"), config.get("num_classes")
    if kind not in TASK_TYPES:
        raise ValueError(f"task {index} has the type {kind!r}; types are {', '.join(TASK_TYPES)}")
    if kind == "regression":
        if classes is not None:
            raise ValueError(f"task {index} is a regression; num_classes is for classifications")
        return None
    if not isinstance(classes, int) or classes < 2:
        raise ValueError(f"task {index} has num_classes {classes!r}; a classification needs at least 2")
    return classes


def _loss(task: int, outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        if outputs.shape != targets.shape:  # broadcasting would give a loss of every output with every target
            raise ValueError(f"task {task} has outputs {tuple(outputs.shape)} for targets {tuple(targets.shape)}")
        return functional.mse_loss(outputs, targets)
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
        shapes = f"logits {tuple(outputs.shape)} for classes {tuple(targets.shape)}"
        raise ValueError(f"task {task} has {shapes}; they must be (B, num_classes) and (B,)")
    return functional.cross_entropy(outputs, targets)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
