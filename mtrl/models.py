"""A shared encoder with one head per task, its losses, and synthetic data for tasks of a chosen relatedness.

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

from mtrl.limits import check_number

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
STEEPNESS = 2.0  # of the tanh in a teacher, which is then far from linear over the range of its inputs


class SharedEncoder(nn.Sequential):
    """A perceptron from the input to the representation that all tasks share, with ReLU after every hidden layer.

    Args:
        input_dim: the size of an input.
        hidden: the widths of the hidden layers; empty for a linear encoder.
        output_dim: the size of the representation.

    Shapes: (B, input_dim) to (B, output_dim).

    Raises:
        ValueError: a size is below 1, or `hidden` is not a list.
    """

    def __init__(self, input_dim: int, hidden: Sequence[int], output_dim: int) -> None:
        if not isinstance(hidden, Sequence):
            raise ValueError(f"hidden is {hidden!r}; it must be a list of widths, such as [64, 64]")
        _check_sizes(input_dim=input_dim, hidden=min(hidden, default=1), output_dim=output_dim)
        widths = [input_dim, *hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths, hidden, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], output_dim))


class TaskHead(nn.Linear):
    """A linear layer from the representation to the outputs of one task: the logits of its classes, or one number.

    Args:
        input_dim: the size of the representation.
        num_classes: the number of classes of a classification; None for a regression. Default None.

    Shapes: (B, input_dim) to (B, num_classes), or to (B,) for a regression.

    Raises:
        ValueError: `input_dim` is below 1 or `num_classes` below 2.
    """

    def __init__(self, input_dim: int, num_classes: int | None = None) -> None:
        _check_sizes(input_dim=input_dim)
        if num_classes is not None:
            check_number("num_classes", num_classes, least=2, whole=True)
        super().__init__(input_dim, num_classes or 1)
        self.num_classes = num_classes

    def forward(self, representation: Tensor) -> Tensor:
        """The outputs of the task for a representation (B, input_dim)."""
        outputs = super().forward(representation)
        return outputs.squeeze(-1) if self.num_classes is None else outputs


class MultiTaskModel(nn.Module):
    """A `SharedEncoder` with one `TaskHead` per task.

    Args:
        input_dim: the size of an input.
        shared_hidden: the widths of the encoder's hidden layers.
        shared_dim: the size of the shared representation.
        task_configs: for each of the T tasks a mapping with the key `type`, which is `"classification"` or
            `"regression"`; for a classification also `num_classes`; and optionally `name`.

    Attributes:
        encoder: the encoder. Its parameters are the shared ones, which a balancer balances.
        heads: one `TaskHead` per task.
        task_names: the names of the tasks, by default `task_<index>`.

    Raises:
        ValueError: there is no task, a size is out of range, a task has an unknown key or type, a classification has no
            `num_classes`, or a regression has one. The message names the task.
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
        """The outputs of each task for `features` (B, input_dim): logits (B, num_classes), or (B,) for a regression."""
        representation = self.encoder(features)  # (B, shared_dim)
        return [head(representation) for head in self.heads]


def task_losses(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """One loss per task, each a mean over the batch, as a balancer takes them.

    The loss is the cross-entropy if the targets are integers, and the mean squared error if they are floating-point
    numbers.

    Args:
        outputs: for each task, logits (B, num_classes), or for a regression numbers of the shape of the targets.
        targets: for each task, classes (B,), counted from 0, in any integer dtype or as booleans, or floating-point
            numbers of any shape. Classes of -100 are left out, as PyTorch does.

    Returns:
        T scalars, in nats for a classification and in squared units of the target for a regression.

    Raises:
        ValueError: the numbers of outputs and targets differ, their shapes do not fit, one is no tensor, or, on a CPU,
            a class is out of range; the message names the task.
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
        weights: one weight per task. Default: 1 for each task.

    Raises:
        ValueError: as `task_losses`, or the number of weights is not T.
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
    """One set of inputs and, for each of T tasks, a set of targets, made by teachers whose features overlap.

    Inputs x are standard normal. Teacher t has H = input_dim // (T + 1) unit features a_th and a readout b_t with
    |b_t| = 1, and gives the score s_t = sum_h b_th tanh(2 a_th.x). The features are
    a_th = sqrt(r) e_0h + sqrt(1 - r) e_th over (T + 1) H orthonormal vectors e, drawn at random. For two tasks t and u,
    a_th.a_uk is therefore r if h = k and 0 otherwise: with r = 1 all tasks depend on the same features, and with r = 0
    each task depends on features of its own.

    Scores are scaled to mean 0 and standard deviation 1 over the samples, and noise is added. The target of a
    regression is the sum, scaled again. The target of a classification is the quantile of the sum, so that all classes
    are equally frequent.

    To get training and validation data of the same teachers, divide the samples of one call.

    Args:
        num_samples: N.
        input_dim: the size of an input, at least T + 1.
        num_classes: for each task its number of classes, or None for a regression.
        device: the device of the tensors. Their values do not depend on it.
        seed: the seed of inputs, teachers and noise. Default 0.
        relatedness: r in [0, 1], the cosine between the features of two tasks. Default 0.5.
        noise: the standard deviation of Gaussian noise, relative to that of the score. Default 0.1.

    Returns:
        Inputs (N, input_dim) in float32, and for each task targets (N,): classes in int64, or numbers in float32.

    Raises:
        ValueError: an argument is out of range, or there are fewer samples than classes.
    """
    T = len(num_classes)
    _check_sizes(num_samples=num_samples, num_tasks=T)
    if input_dim < T + 1:
        raise ValueError(f"input_dim is {input_dim}; teachers of {T} tasks need at least {T + 1}")
    check_number("relatedness", relatedness, least=0, most=1)
    check_number("noise", noise, least=0)
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
    """The features (T, input_dim, H), each a vector along the second axis: orthonormal within a task, see above."""
    count = input_dim // (num_tasks + 1)
    basis, _ = torch.linalg.qr(torch.randn(input_dim, (num_tasks + 1) * count, generator=generator))
    shared, *own = basis.split(count, dim=1)
    return torch.stack([math.sqrt(relatedness) * shared + math.sqrt(1 - relatedness) * part for part in own])


def _standardised(values: Tensor) -> Tensor:
    """The values scaled to mean 0 and standard deviation 1; a single value becomes 0."""
    centred = values - values.mean()
    return centred / centred.square().mean().sqrt().clamp(min=torch.finfo(values.dtype).tiny)


def _quantiles(values: Tensor, count: int) -> Tensor:
    """For each of the values (N,), the number of its quantile among `count`, counted from 0 for the lowest."""
    ranks = values.argsort().argsort()
    return ranks * count // len(values)


def _num_classes(index: int, config: Mapping[str, object]) -> int | None:
    """The number of classes of the task with this configuration; None for a regression."""
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
    if classes is None:
        raise ValueError(f"task {index} has num_classes None; a classification needs at least 2")
    return int(check_number(f"num_classes of task {index}", classes, least=2, whole=True))


def _loss(task: int, outputs: Tensor, targets: Tensor) -> Tensor:
    for name, given in (("outputs", outputs), ("targets", targets)):
        if not isinstance(given, Tensor):
            raise ValueError(f"the {name} of task {task} are a {type(given).__name__}; a tensor is needed")
    if targets.is_floating_point():
        if outputs.shape != targets.shape:  # broadcasting would compare every output with every target
            of_classes = outputs.ndim == 2 and targets.shape == outputs.shape[:1]
            hint = "; if they are classes, give integers: targets.long()" if of_classes else ""
            raise ValueError(f"task {task} has outputs {tuple(outputs.shape)} for targets {tuple(targets.shape)}{hint}")
        return functional.mse_loss(outputs, targets)
    if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
        shapes = f"logits {tuple(outputs.shape)} for classes {tuple(targets.shape)}"
        hint = "; for a regression, give targets.float()" if outputs.shape == targets.shape else ""
        raise ValueError(f"task {task} has {shapes}; they must be (B, num_classes) and (B,){hint}")
    try:
        return functional.cross_entropy(outputs, targets.long())
    except IndexError as error:  # on a CPU
        low, high = int(targets.min()), int(targets.max())
        problem = f"classes from {low} to {high} for {outputs.shape[1]} logits; they are counted from 0"
        raise ValueError(f"task {task} has {problem}") from error


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        check_number(name, size, least=1, whole=True)
