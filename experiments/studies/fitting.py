"""One training of a model on several losses, with any balancer, seen through its validation errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.program.progress import progress
from experiments.supervised.data import Samples
from mtrl import Balance, Balancer, LookaheadGuidance, make_balancer
from mtrl.gradients import TaskGradients
from mtrl.models import MultiTaskModel, task_losses

Array = NDArray[np.float64]
Result = TypeVar("Result")

POINTS = 60  # of a learning curve
LATE = 0.25  # share of a phase, at its end, over which interventions and weights are averaged

METHODS = {"naive": "equal", "static": "pcgrad", "AIM": "aim", "GradNorm": "gradnorm", "RGB": "rgb"}
"""The balancer behind each name that the reports use; `static` is the PCGrad-style rule."""

ALONE = "alone"  # a model of its own for each task
SAME_ROWS = "naive, AIM's rows"  # naive without the rows that AIM holds out: what holding out costs by itself
CLEAN = "naive, no noise task"  # what the noise task costs


@dataclass(frozen=True)
class Phase:
    """A stretch of training on the same data.

    Every method is given the same rows. AIM holds out those in `guidance`; the others train on them, too.
    """

    train: Samples
    guidance: Samples
    validation: Samples
    steps: int


@dataclass(frozen=True)
class Fit:
    """What a training left. T tasks, P points of the learning curve."""

    steps: Array  # (P,), updates
    errors: Array  # (P, T), validation losses
    weights: Array  # (T,), the balancer's coefficients late in the last phase
    tau: Array | None = None  # (T, T), AIM's thresholds at the end
    intervention: Array | None = None  # (T, T), AIM's w late in the last phase: row i gives way to column j

    @property
    def final(self) -> Array:
        """Validation losses (T,) at the end: of the last model, not of the best."""
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
    watch: Callable[[], None] | None = None,
) -> Fit:
    """Train on all rows at once, with Adam, through the phases one after the other.

    The balancer's state lasts from phase to phase. AIM's guidance is the sum of all losses, none preferred, on the
    phase's guidance rows, one step of plain gradient descent ahead.

    Args:
        losses: T scalars, of the model as it stands.
        shared: the parameters whose gradients are balanced.
        parameters: all parameters.
        phases: at least one.
        method: a name in `METHODS`.
        learning_rate: of Adam.
        policy_lr: of AIM's thresholds.
        watch: called before every update and at the end.

    Raises:
        FloatingPointError: a gradient or a validation loss is not finite.
    """
    shared, balancer = list(shared), None
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    answers: list[Balance] = []
    points: list[tuple[int, Array]] = []
    done, total = 0, sum(phase.steps for phase in phases)
    measured = set(np.linspace(0, total, POINTS, dtype=int).tolist())

    def measure(validation: Samples) -> None:
        if done in measured:
            with torch.no_grad():
                points.append((done, torch.stack(list(losses(validation))).double().numpy()))

    for phase in phases:
        if balancer is None:
            balancer = _balancer(method, len(losses(phase.train)), policy_lr, answers)
        rows = phase.train
        if balancer.wants_guidance:
            balancer.set_guidance(LookaheadGuidance(_total(losses, phase.guidance), shared), eta=learning_rate)
        else:
            rows = joined(phase.train, phase.guidance)
        for _ in range(phase.steps):
            measure(phase.validation)
            if watch is not None:
                watch()
            optimizer.zero_grad()
            balancer.backward(losses(rows), shared)
            optimizer.step()
            done += 1
    measure(phases[-1].validation)
    if watch is not None:
        watch()
    errors = np.stack([errors for _, errors in points])
    if not np.isfinite(errors).all():
        raise FloatingPointError("a validation loss is not finite")
    late = answers[-max(1, int(LATE * phases[-1].steps)) :]
    tau, intervention = (_mean(late, name) for name in ("tau", "intervention"))
    assert balancer is not None  # there is at least one phase
    if (learned := balancer.state_dict().get("tau")) is not None:
        tau = learned.numpy().copy()
    return Fit(
        steps=np.array([step for step, _ in points], float),
        errors=errors,
        weights=torch.stack([answer.coefficients for answer in late]).mean(0).double().numpy(),
        tau=tau,
        intervention=intervention,
    )


def fit_model(
    model: MultiTaskModel, phases: Sequence[Phase], method: str, *, learning_rate: float, policy_lr: float
) -> Fit:
    """`fit` for a model with a shared encoder and a head per task; heads are trained with their own gradients."""

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
    """A model of its own for each task, `make_model(task)`; nothing is shared."""
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
    """Trainings of different tasks at the same updates as if they were one; the only one stays as it is."""
    if len(fits) == 1:
        return fits[0]
    return Fit(fits[0].steps, np.hstack([fit.errors for fit in fits]), np.hstack([fit.weights for fit in fits]))


def without_guidance(phase: Phase) -> Phase:
    """The phase for `SAME_ROWS`: nobody sees the guidance rows."""
    return replace(phase, guidance=phase.guidance[:0])


def of_tasks(phase: Phase, tasks: Sequence[int]) -> Phase:
    """The same rows with the targets of these tasks."""

    def part(samples: Samples) -> Samples:
        return Samples(samples.features, [samples.targets[task] for task in tasks])

    return Phase(part(phase.train), part(phase.guidance), part(phase.validation), phase.steps)


def joined(one: Samples, other: Samples) -> Samples:
    """The rows of both."""
    targets = [torch.cat(pair) for pair in zip(one.targets, other.targets, strict=True)]
    return Samples(torch.cat([one.features, other.features]), targets)


def split(samples: Samples, train: int, guidance: int, steps: int) -> Phase:
    """A phase whose first rows are to train on, the next for guidance, and the rest to validate on."""
    end = train + guidance
    return Phase(samples[:train], samples[train:end], samples[end:], steps)


def seeded(make: Callable[[], MultiTaskModel], seed: int) -> MultiTaskModel:
    """A model whose first weights are those of the seed; PyTorch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _balancer(method: str, num_tasks: int, policy_lr: float, answers: list[Balance]) -> Balancer:
    """The method's balancer, which leaves each of its answers in `answers`."""
    options = {"lr": policy_lr} if method == "AIM" else {}
    balancer = make_balancer(METHODS[method], num_tasks, **options)

    def keep(module: nn.Module, arguments: tuple[TaskGradients, ...], answer: Balance) -> None:
        answers.append(answer)

    balancer.register_forward_hook(keep)
    return balancer


def _total(losses: Callable[[Samples], Sequence[Tensor]], samples: Samples) -> Callable[[], Tensor]:
    return lambda: torch.stack(list(losses(samples))).sum()


def _mean(answers: Sequence[Balance], name: str) -> Array | None:
    found = [answer.diagnostics[name] for answer in answers if name in answer.diagnostics]
    return torch.stack(found).mean(0).double().numpy() if found else None


def settled(gradients: Array, method: str, calls: int) -> Array:
    """The method's update (D,) for gradients (T, D) that it has seen `calls` times, at losses of 1.

    AIM's guidance wants what the gradients want in sum.
    """
    balancer = make_balancer(METHODS[method], len(gradients))
    jacobian, losses = torch.from_numpy(gradients), torch.ones(len(gradients), dtype=torch.float64)
    if balancer.wants_guidance:
        balancer.set_guidance(lambda step: jacobian.sum(0))
    for _ in range(calls):
        update = balancer.combine(jacobian, losses)
    return np.asarray(update.numpy())


def harms(gradients: Array, method: str, calls: int) -> bool:
    """Whether the update of `settled` raises a loss to first order, beyond rounding."""
    update = settled(gradients, method, calls)
    along = gradients @ update / np.linalg.norm(gradients, axis=1)
    return bool((along < -1e-9 * np.linalg.norm(gradients, axis=1).sum()).any())


def collect(
    title: str, methods: Sequence[str], seeds: Sequence[int], train: Callable[[str, int], Result], quiet: bool
) -> dict[str, dict[int, Result]]:
    """What `train(method, seed)` gives, by method and seed; with a bar of progress unless `quiet`."""
    torch.set_num_threads(1)  # two threads are slower at these sizes
    results: dict[str, dict[int, Result]] = {method: {} for method in methods}
    with progress(quiet) as bar:
        row = bar.add_task(title, total=len(methods) * len(seeds))
        for seed in seeds:
            for method in methods:
                results[method][seed] = train(method, seed)
                bar.advance(row)
    return results
