"""A supervised model in training: data, balancer and optimizer, one pass over the samples at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from experiments.program.balancer_options import balancer_from, variant_from_word
from experiments.program.device import find_device
from experiments.program.flags import UsageError
from experiments.supervised.data import Samples, TaskData, load_data
from experiments.supervised.settings import ModelSettings, Settings, TaskSettings
from mtrl import Balance, Balancer, LookaheadGuidance, checkpoint
from mtrl.conflict import cosines
from mtrl.files import one_line
from mtrl.gradients import TaskGradients
from mtrl.models import MultiTaskModel, task_losses

KIND = "supervised"
LARGEST_CHUNK = 4_096  # samples per batch of the validation


@dataclass(frozen=True)
class Score:
    """A task's results on the validation samples."""

    metric: str  # "accuracy", or "r2" for a regression
    score: float
    loss: float


@dataclass(frozen=True)
class Epoch:
    """The results of one pass over the training samples."""

    number: int  # counted from 1
    train_loss: dict[str, float]  # for each task, the mean over the pass
    scores: dict[str, Score]  # for each task, after the pass
    weights: dict[str, float]  # for each task, the mean of the balancer's coefficients over updates
    cosines: dict[tuple[str, str], float]  # for two tasks, the mean cosine of their gradients over updates

    @property
    def mean_score(self) -> float:
        """The mean over tasks of the accuracies and R^2 values."""
        return math.fsum(score.score for score in self.scores.values()) / len(self.scores)

    def as_metrics(self) -> dict[str, float]:
        """A line of metrics.jsonl."""
        line: dict[str, float] = {"epoch": self.number}
        for task, score in self.scores.items():
            line[f"train/{task}/loss"] = self.train_loss[task]
            line[f"eval/{task}/loss"] = score.loss
            line[f"eval/{task}/{score.metric}"] = score.score
            line[f"balancer/{task}/weight"] = self.weights[task]
        line |= {f"balancer/cosine/{a}_{b}": cosine for (a, b), cosine in self.cosines.items()}
        return line | {"eval/mean_score": self.mean_score}


class Learner:
    """Trains a `MultiTaskModel`.

    All random numbers depend on `seed` alone. The data, the first weights and the order of the samples are the same for
    every balancer, except that AIM holds out a guidance set.

    Each task's loss is multiplied by its weight in `training.loss_weights` before the balancer sees it. With `equal`
    the update is the gradient of the weighted sum. For PCGrad and AIM a heavier task has a longer gradient. GradNorm
    and RGB set the lengths themselves, so that they undo the weights in the encoder. Each head gets the gradient of its
    own weighted loss.

    AIM's guidance set is a share of the training samples, on which AIM does not train. The guidance loss is evaluated
    after one step of plain gradient descent at the learning rate; the balancer's option `guidance_loss` says how it is
    made of the tasks' losses.

    Args:
        settings: the settings, which must have been checked.
        seed: the seed of everything random.
        balancer: the balancer, as a word that `find_balancer` takes. Default: the balancer of the settings.
        device: the device that trains the model.
        data: the samples, if they are already loaded. Default: the samples that `load_data` returns.

    Attributes:
        model: the model in training.
        balancer: the balancer that combines the task gradients.
        data: the samples.
        train: the training samples without AIM's guidance set.
        val: the validation samples.
        epochs_done: the number of passes so far.

    Raises:
        UsageError: the balancer or the device is unknown or not installed, or an option of the balancer is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        seed: int,
        balancer: str | None = None,
        device: str = "cpu",
        data: TaskData | None = None,
    ) -> None:
        training = settings.training
        balancer = balancer or training.balancer
        self.device = find_device(device)
        self.balancer = find_balancer(settings, balancer).to(self.device)
        self.settings = settings
        self.balancer_name = balancer
        self.seed = seed
        self.epochs_done = 0
        self.data = load_data(settings, seed) if data is None else data
        with torch.random.fork_rng(devices=[]):  # PyTorch's global generator is not changed
            torch.manual_seed(seed)
            self.model = _make_model(settings.model).to(self.device)
        self._shared = list(self.model.encoder.parameters())
        self._order = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=training.learning_rate)
        self._weights = training.loss_weights or (1.0,) * len(settings.model.tasks)
        self.train, self.val = self.data.train.to(self.device), self.data.val.to(self.device)
        if count := num_held_out(settings, self.balancer):
            order = torch.randperm(len(self.train), generator=self._order).to(self.device)
            held_out, self.train = self.train[order[:count]], self.train[order[count:]]

            def held_out_losses() -> list[Tensor]:
                return self._weighted(task_losses(self.model(held_out.features), held_out.targets))

            guidance = LookaheadGuidance(held_out_losses, self._shared, self.balancer.guidance_loss)
            self.balancer.set_guidance(guidance, eta=training.learning_rate)

    def epoch(self) -> Epoch:
        """Train on every sample once, then validate.

        Raises:
            FloatingPointError: a gradient or a validation loss is not finite; the message names the task.
        """
        tasks = [task.name for task in self.settings.model.tasks]
        order = torch.randperm(len(self.train), generator=self._order)
        batches = torch.split(order.to(self.device), self.settings.training.batch_size)
        weights: list[Tensor] = []
        angles: list[Tensor] = []

        def watch(balancer: Balancer, arguments: tuple[TaskGradients, ...], answer: Balance) -> None:
            weights.append(answer.coefficients)
            angles.append(cosines(arguments[0].gramian))

        hook = self.balancer.register_forward_hook(watch)
        try:
            losses = [self._update(self.train[batch]) * len(batch) for batch in batches]
        finally:
            hook.remove()
        self.epochs_done += 1
        loss = torch.stack(losses).sum(0) / len(order)  # (T,)
        weight, cosine = torch.stack(weights).mean(0), torch.stack(angles).mean(0)  # (T,), (T, T)
        return Epoch(
            number=self.epochs_done,
            train_loss=dict(zip(tasks, loss.tolist(), strict=True)),
            scores=validate(self.model, self.val, self.settings.model.tasks),
            weights=dict(zip(tasks, weight.tolist(), strict=True)),
            cosines={(tasks[i], tasks[j]): float(cosine[i, j]) for i, j in combinations(range(len(tasks)), 2)},
        )

    def save(self, path: Path) -> None:
        """Write the model to a file that `load_model` reads."""
        state = {
            "kind": KIND,
            "model": asdict(self.settings)["model"],
            "balancer": self.balancer_name,
            "seed": self.seed,
            "epoch": self.epochs_done,
            "weights": self.model.state_dict(),
            "mean": self.data.mean,
            "deviation": self.data.deviation,
        }
        checkpoint.save(path, state)

    def _update(self, batch: Samples) -> Tensor:
        """Take one step of the optimizer, and return the losses (T,) from before it, without their weights."""
        losses = task_losses(self.model(batch.features), batch.targets)
        self._optimizer.zero_grad()
        self.balancer.backward(self._weighted(losses), self._shared)
        self._optimizer.step()
        return torch.stack(losses).detach()

    def _weighted(self, losses: Sequence[Tensor]) -> list[Tensor]:
        return [weight * loss for weight, loss in zip(self._weights, losses, strict=True)]


@torch.no_grad()
def validate(model: MultiTaskModel, samples: Samples, tasks: Sequence[TaskSettings]) -> dict[str, Score]:
    """Each task's score on `samples`: the share of right answers, or R^2 = 1 - sum (y - f)^2 / sum (y - mean y)^2.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    chunks = [model(chunk) for chunk in torch.split(samples.features, LARGEST_CHUNK)]
    outputs = [torch.cat(parts) for parts in zip(*chunks, strict=True)]  # of each task (N, classes) or (N,)
    scores = {}
    for task, output, target, loss in zip(
        tasks, outputs, samples.targets, task_losses(outputs, samples.targets), strict=True
    ):
        if not math.isfinite(loss):
            raise FloatingPointError(f"the validation loss of task {task.name!r} is {float(loss)}")
        if task.type == "classification":
            score = float((output.argmax(1) == target).double().mean())
        else:
            score = 1.0 - float(loss / target.var(correction=0))
        scores[task.name] = Score(task.metric, score, float(loss))
    return scores


def load_model(path: Path) -> tuple[MultiTaskModel, Tensor, Tensor]:
    """Load a model that `Learner.save` wrote.

    Returns:
        The model, and the mean and the deviation (input_dim,) that standardise its inputs.

    Raises:
        CheckpointError: the file is missing, is damaged, or holds something else.
    """
    state = checkpoint.load(path)
    if state.get("kind") != KIND:
        raise checkpoint.CheckpointError(f"cannot load model '{path}': it is of no supervised run")
    try:
        settings = dict(state["model"])
        settings["tasks"] = tuple(TaskSettings(**task) for task in settings["tasks"])
        size = ModelSettings(**settings)
        Settings(model=size).check()  # before any memory is allocated
        model = _make_model(size)
        model.load_state_dict(state["weights"])
        mean, deviation = (state[name].float() for name in ("mean", "deviation"))
        if {mean.shape, deviation.shape} != {(size.input_dim,)}:
            raise ValueError("its inputs have no mean and deviation")
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        problem = one_line(f"{type(error).__name__}: {error}")
        raise checkpoint.CheckpointError(f"cannot load model '{path}': {problem}") from None
    return model, mean, deviation


def find_balancer(settings: Settings, word: str) -> Balancer:
    """Make the balancer of a word `label=balancer,option=value,...` for the settings' tasks.

    The balancer of the settings, `training.balancer`, has its options there, in `training.balancer_options`.

    Raises:
        UsageError: the name or an option is unknown, or the value of an option is wrong.
    """
    num_tasks = len(settings.model.tasks)
    if word == settings.training.balancer:
        if "," in word:
            raise UsageError(
                f"training.balancer is {word!r}; options of a balancer belong in training.balancer_options"
            )
        return balancer_from(word, num_tasks, settings.training.balancer_options)
    variant = variant_from_word(word)
    return balancer_from(variant.balancer, num_tasks, variant.options)


def _make_model(settings: ModelSettings) -> MultiTaskModel:
    tasks = [{name: value for name, value in asdict(task).items() if value is not None} for task in settings.tasks]
    return MultiTaskModel(settings.input_dim, settings.shared_hidden, settings.shared_dim, tasks)


def num_held_out(settings: Settings, balancer: Balancer) -> int:
    """The size of the balancer's guidance set: 0 if it needs none, otherwise at least 1 and not all samples."""
    if not balancer.wants_guidance:
        return 0
    samples = settings.data.num_train
    return min(max(1, round(settings.training.guidance_share * samples)), samples - 1)
