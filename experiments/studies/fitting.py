"""Training a small model on several losses with any balancer, and recording its validation errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.studies.published_aim import PublishedAIM
from experiments.supervised.data import Samples
from mtrl import Balance, Balancer, LookaheadGuidance, make_balancer
from mtrl.gradients import TaskGradients
from mtrl.guidance import GuidanceLoss, combined
from mtrl.models import MultiTaskModel, task_losses

Array = NDArray[np.float64]
Net = TypeVar("Net", bound=nn.Module)

POINTS = 60  # points of a learning curve
LATE = 0.25  # weights and interventions are averaged over the last quarter of the last phase

PUBLISHED = "AIM as published"
GATED = "AIM with gate"

METHODS = {
    "naive": "equal",
    "static": "pcgrad",
    PUBLISHED: "published",
    "AIM": "aim",
    GATED: "aim",
    "GradNorm": "gradnorm",
    "RGB": "rgb",
}
"""The balancer behind each method's name in the reports; `static` is PCGrad, a fixed rule."""

JUDGED = (PUBLISHED, GATED)  # the document's claims about AIM are tested for these two
WITH_GATE: dict[str, Any] = {
    "gate": True,
    "guidance_loss": "log_sum",
    "magnitude_weight": 0.01,
    "progress_weight": 0.01,
}

ALONE = "alone"  # one model per task
SAME_ROWS = "naive, AIM's rows"  # trained without the rows that AIM holds out; shows what holding them out costs
STATIC_SAME_ROWS = "static, AIM's rows"
CLEAN = "naive, no noise task"  # shows what the noise task costs
CLEAN_SAME_ROWS = "naive, no noise task, AIM's rows"
UNIT_NORM = "AIM, unit-norm guidance"


@dataclass(frozen=True)
class Phase:
    """A stretch of training on the same data.

    Every method is given the same rows. AIM holds out the rows in `guidance`; all other methods train on them as well.
    """

    train: Samples
    guidance: Samples
    validation: Samples
    steps: int


@dataclass(frozen=True)
class Fit:
    """The results of one training on T tasks, with P points of the learning curve."""

    steps: Array  # (P,), updates before each point
    errors: Array  # (P, T), validation losses
    weights: Array  # (T,), the balancer's coefficients, mean over the end of the last phase
    tau: Array | None = None  # (T, T), AIM's thresholds at the end of training
    intervention: Array | None = (
        None  # (T, T), AIM's w: how far task i gives way to task j, mean over the end of the last phase
    )
    taus: Array | None = None  # (P, T, T), AIM's thresholds at each point; NaN before the first update
    reach: Array | None = None  # (T, 2), see `reach_of`, mean over the end of the last phase

    @property
    def final(self) -> Array:
        """Validation losses (T,) of the last model, which need not be the best one."""
        last: Array = self.errors[-1]
        return last


def fit(
    losses: Callable[[Samples], Sequence[Tensor]],
    shared: Iterable[nn.Parameter],
    parameters: Iterable[nn.Parameter],
    phases: Sequence[Phase],
    method: str,
    *,
    learning_rate: float,
    policy_lr: float,
    watch: Callable[[], object] = lambda: None,
) -> Fit:
    """Train with Adam through the phases, one after the other. Every update uses all rows of its phase.

    The balancer keeps its state from phase to phase. AIM's guidance loss is the sum of all losses on the phase's
    guidance rows, or with a gate the sum of their logarithms, after one step of plain gradient descent.

    Args:
        losses: the T losses of the model with its present parameters, each a scalar.
        shared: the parameters whose gradients are balanced.
        parameters: all parameters.
        phases: the data and the number of updates; at least one phase.
        method: a name in `METHODS`.
        learning_rate: the step size of Adam.
        policy_lr: the learning rate of AIM's thresholds.
        watch: a function that is called before every update and after the last one. Default: one that does nothing.

    Raises:
        FloatingPointError: a gradient or a validation loss is not finite.
    """
    shared = list(shared)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    points: list[tuple[int, Array]] = []
    measured = set(np.linspace(0, sum(phase.steps for phase in phases), POINTS, dtype=int).tolist())
    done = 0

    def observe(validation: Samples) -> None:
        if done in measured:
            with torch.no_grad():
                points.append((done, torch.stack(list(losses(validation))).double().numpy()))
        watch()

    balancer, answers = _balancer(method, len(losses(phases[0].train)), policy_lr)
    for phase in phases:
        rows = phase.train
        if balancer.wants_guidance:
            guidance = LookaheadGuidance(_on(losses, phase.guidance), shared, balancer.guidance_loss)
            balancer.set_guidance(guidance, eta=learning_rate)
        else:
            rows = joined(phase.train, phase.guidance)
        for _ in range(phase.steps):
            observe(phase.validation)
            optimizer.zero_grad()
            balancer.backward(losses(rows), shared)
            optimizer.step()
            done += 1
    observe(phases[-1].validation)
    return _results(points, answers, max(1, int(LATE * phases[-1].steps)))


def _results(points: Sequence[tuple[int, Array]], answers: Sequence[Balance], late: int) -> Fit:
    """The results of a training, from its learning curve and the balancer's answers, of which the last are `late`."""
    errors = np.stack([errors for _, errors in points])
    if not np.isfinite(errors).all():
        raise FloatingPointError("a validation loss is not finite")
    of_end, steps = answers[-late:], [step for step, _ in points]
    learns = "tau" in answers[-1].diagnostics
    taus = [answers[min(step, len(answers) - 1)].diagnostics["tau"].numpy() for step in steps] if learns else None
    return Fit(
        steps=np.array(steps, float),
        errors=errors,
        weights=torch.stack([answer.coefficients for answer in of_end]).mean(0).double().numpy(),
        tau=None if taus is None else taus[-1],
        intervention=_mean(of_end, "intervention"),
        taus=None if taus is None else np.stack(taus),
        reach=np.mean([reach_of(answer) for answer in of_end], 0) if learns else None,
    )


def reach_of(answer: Balance) -> Array:
    """The least and the most (T, 2) that AIM's coefficient of each task can be without a gate, whatever its thresholds.

    beta_j = 1 - sum_{i != j} w_ij G_ij / G_jj with every w_ij between 0 and 1.
    """
    w, removed = answer.diagnostics["intervention"], answer.diagnostics["ratio"]
    others = removed.numpy() * ~np.eye(len(w), dtype=bool)
    return 1 - np.stack([np.maximum(others, 0).sum(0), np.minimum(others, 0).sum(0)], 1)


def fit_model(
    model: MultiTaskModel, phases: Sequence[Phase], method: str, *, learning_rate: float, policy_lr: float
) -> Fit:
    """Train a model that has a shared encoder and one head per task. Each head gets its own task's plain gradient."""

    def losses(samples: Samples) -> list[Tensor]:
        return task_losses(model(samples.features), samples.targets)

    return fit(
        losses,
        model.encoder.parameters(),
        model.parameters(),
        phases,
        method,
        learning_rate=learning_rate,
        policy_lr=policy_lr,
    )


def fit_alone(make_model: Callable[[int], MultiTaskModel], phases: Sequence[Phase], *, learning_rate: float) -> Fit:
    """Train one model per task, `make_model(task)`. Nothing is shared."""
    return side_by_side(
        [
            fit_model(
                make_model(task),
                [of_tasks(phase, [task]) for phase in phases],
                "naive",
                learning_rate=learning_rate,
                policy_lr=1.0,
            )
            for task in range(len(phases[0].train.targets))
        ]
    )


def side_by_side(fits: Sequence[Fit]) -> Fit:
    """Join trainings of different tasks, with the same number of updates each, into one result."""
    if len(fits) == 1:
        return fits[0]
    return Fit(fits[0].steps, np.hstack([fit.errors for fit in fits]), np.hstack([fit.weights for fit in fits]))


def without_guidance(phase: Phase) -> Phase:
    """The phase without its guidance rows, for the method `SAME_ROWS`."""
    return replace(phase, guidance=phase.guidance[:0])


def of_tasks(phase: Phase, tasks: Sequence[int]) -> Phase:
    """The phase with the same rows, and the targets of these tasks only."""

    def part(samples: Samples) -> Samples:
        return Samples(samples.features, [samples.targets[task] for task in tasks])

    return Phase(part(phase.train), part(phase.guidance), part(phase.validation), phase.steps)


def joined(one: Samples, other: Samples) -> Samples:
    """All rows of two sets of samples."""
    targets = [torch.cat(pair) for pair in zip(one.targets, other.targets, strict=True)]
    return Samples(torch.cat([one.features, other.features]), targets)


def split(samples: Samples, train: int, guidance: int, steps: int) -> Phase:
    """Divide samples into a phase: the first `train` rows, then `guidance` rows; the rest are for validation."""
    end = train + guidance
    return Phase(samples[:train], samples[train:end], samples[end:], steps)


def seeded(make: Callable[[], Net], seed: int) -> Net:
    """Make a model in float64 whose first weights depend on `seed` alone.

    In float64 a difference of rounding between two machines stays far below what a verdict depends on. PyTorch's global
    generator is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def _balancer(method: str, num_tasks: int, policy_lr: float) -> tuple[Balancer, list[Balance]]:
    """The method's balancer, and a list to which the balancer appends each of its answers."""
    balancer = _make(method, num_tasks, lr=policy_lr)
    answers: list[Balance] = []

    def keep(module: nn.Module, arguments: tuple[TaskGradients, ...], answer: Balance) -> None:
        if "tau" in answer.diagnostics:
            gramian = arguments[0].gramian.double()
            ratio = gramian / gramian.diagonal().clamp(min=torch.finfo(torch.float64).tiny)
            answer = replace(answer, diagnostics={**answer.diagnostics, "ratio": ratio})
        answers.append(answer)

    balancer.register_forward_hook(keep)
    return balancer, answers


def _make(method: str, num_tasks: int, **aim: Any) -> Balancer:
    """The method's balancer; `aim` are options of AIM, with or without a gate."""
    if method == PUBLISHED:
        return PublishedAIM(num_tasks)
    options = {**(WITH_GATE if method == GATED else {}), **aim} if METHODS[method] == "aim" else {}
    return make_balancer(METHODS[method], num_tasks, **options)


def _on(losses: Callable[[Samples], Sequence[Tensor]], samples: Samples) -> Callable[[], Sequence[Tensor]]:
    return lambda: losses(samples)


def _mean(answers: Sequence[Balance], name: str) -> Array | None:
    found = [answer.diagnostics[name] for answer in answers if name in answer.diagnostics]
    return torch.stack(found).mean(0).double().numpy() if found else None


def settled(gradients: Array, method: str, calls: int, guidance_loss: GuidanceLoss = "sum") -> Array:
    """The method's update (D,) after `calls` calls with the same gradients (T, D) and losses of 1.

    The guidance gradient of AIM is what `guidance_loss` makes of the same gradients.
    """
    balancer = _make(method, len(gradients))
    jacobian, losses = torch.from_numpy(gradients), torch.ones(len(gradients), dtype=torch.float64)
    if balancer.wants_guidance:
        direction = combined(jacobian, losses, guidance_loss)
        balancer.set_guidance(lambda step: direction)
    for _ in range(calls):
        update = balancer.combine(jacobian, losses)
    return np.asarray(update.numpy())


def harms(gradients: Array, method: str, calls: int, guidance_loss: GuidanceLoss = "sum") -> bool:
    """Whether the update that `settled` returns raises one of the losses to first order, by more than rounding."""
    update = settled(gradients, method, calls, guidance_loss)
    along = gradients @ update / np.linalg.norm(gradients, axis=1)
    return bool((along < -1e-9 * np.linalg.norm(gradients, axis=1).sum()).any())
