"""What every test of this folder compares with: gradients taken by hand, and the balancer's own dense answer to them.

A test trains one model by `balancer.backward` and a copy of it by `backward_by_hand`, which takes one row per task with
`torch.autograd.grad` and asks a second balancer of the same kind what it makes of the dense Jacobian.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import Balancer, TaskGradients, make_balancer
from mtrl.balancers import names

TASKS = 3
NAMES = (*names(), *(["torchjd:UPGrad"] if importlib.util.find_spec("torchjd") else []))
EAGER: dict[str, dict[str, Any]] = {
    "gradnorm": {"warmup_steps": 1, "lr": 0.3},
    "gradnorm_pcgrad": {"warmup_steps": 1, "lr": 0.3},
    "aim": {"lr": 0.1},
}
"""Settings with which a method's state shows in the second step already."""

CLOSE: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
REFUSALS = (ValueError, TypeError, RuntimeError)

every_balancer = pytest.mark.parametrize("name", NAMES)
every_engine = pytest.mark.parametrize("low_memory", [False, True], ids=["default", "low_memory"])

Losses = Callable[[Any, int], list[Tensor]]  # of a model at a step


def eager(name: str, num_tasks: int = TASKS, **kwargs: Any) -> Balancer:
    """A balancer that changes its weights from the first step on."""
    return make_balancer(name, num_tasks, **EAGER.get(name, {}), **kwargs)


class Heads(nn.Module):
    """An encoder and one head per task; targets pull in different directions."""

    def __init__(self, encoder: nn.Module | None = None, width: int = 6, tasks: int = TASKS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, width)) if encoder is None else encoder
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(tasks))
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The losses."""
        return tuple(self.losses_of(self.encoder(x)))

    def losses_of(self, z: Tensor) -> list[Tensor]:
        """The losses for what the encoder made of a batch."""
        return [(head(z) - 2 * task).pow(2).mean() * 3**task for task, head in enumerate(self.heads)]


def batch(step: int = 0, rows: int = 8, width: int = 3) -> Tensor:
    """Inputs of one step."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def losses_of_heads(model: Heads, step: int) -> list[Tensor]:
    """The losses of a `Heads` model at a step."""
    return list(model(batch(step)))


def shared_of_heads(model: Heads) -> list[Tensor]:
    """The parameters that all losses of a `Heads` model depend on."""
    return list(model.encoder.parameters())


def rows_by_hand(losses: Sequence[Tensor], shared: Sequence[Tensor]) -> tuple[Tensor, list[bool]]:
    """The Jacobian (T, D) by one call of `torch.autograd.grad` per loss, and which parameters a loss reaches."""
    reached = [False] * len(shared)
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        reached = [before or gradient is not None for before, gradient in zip(reached, gradients, strict=True)]
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(parameter) if gradient is None else gradient).reshape(-1)
                    for parameter, gradient in zip(shared, gradients, strict=True)
                ]
            )
        )
    return torch.stack(rows), reached


def backward_by_hand(
    balancer: Balancer,
    losses: Sequence[Tensor],
    shared: Sequence[Tensor],
    private: Iterable[Tensor],
    measured: Tensor | None = None,
) -> Tensor:
    """What `balancer.backward` should do, in the plainest way; the coefficients (T,).

    Args:
        balancer: as after the same calls as the one that is tested.
        losses: one scalar per task.
        shared: the shared parameters.
        private: all others.
        measured: where norm-balancing methods measure. Default: the last shared matrix.
    """
    jacobian, reached = rows_by_hand(losses, shared)
    sizes = [parameter.numel() for parameter in shared]
    if measured is None:
        matrices = [p for p, there in zip(shared, reached, strict=True) if p.ndim >= 2 and there]
        measured = matrices[-1] if matrices else None
    where = slice(None)
    if measured is not None:
        index = next(index for index, parameter in enumerate(shared) if parameter is measured)
        where = slice(sum(sizes[:index]), sum(sizes[: index + 1]))
    with torch.no_grad():
        gradients = TaskGradients(jacobian, where)
        answer = balancer(gradients, torch.stack([loss.detach().reshape(()) for loss in losses]))
        update = answer.update(gradients)
    others = list(private)
    total = torch.stack([loss.reshape(()) for loss in losses]).sum()
    ordinary = torch.autograd.grad(total, others, allow_unused=True) if others else ()
    pairs = [
        (parameter, part.view_as(parameter) if there else None)
        for parameter, part, there in zip(shared, update.split(sizes), reached, strict=True)
    ]
    for parameter, gradient in (*pairs, *zip(others, ordinary, strict=True)):
        if gradient is not None:
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
    coefficients: Tensor = answer.coefficients
    return coefficients


def private_of(model: nn.Module, shared: Iterable[Tensor]) -> list[Tensor]:
    """The trainable parameters of a model that are not shared."""
    known = {id(parameter) for parameter in shared}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in known]


def assert_same_gradients(
    model: nn.Module, twin: nn.Module, *, relative: float | None = None, **tolerance: Any
) -> None:
    """Every `.grad` of `model` is that of `twin`; where one is None, so is the other.

    Args:
        model: what was trained.
        twin: the reference.
        relative: where given, the norm of each parameter's error is at most this share of the gradient's norm.
        tolerance: otherwise, of the comparison number by number.
    """
    for (name, actual), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        if expected.grad is None or actual.grad is None:
            assert actual.grad is expected.grad, f"one gradient of {name} is None"
            continue
        if relative is not None:
            error = (actual.grad.double() - expected.grad.double()).norm() / expected.grad.double().norm()
            assert float(error) <= relative, f"{name} is off by {float(error):.3g} of its norm"
            continue
        torch.testing.assert_close(
            actual.grad, expected.grad, msg=lambda text, name=name: f"{name}: {text}", **(tolerance or CLOSE)
        )


@torch.no_grad()
def descend(model: nn.Module, lr: float = 0.02) -> None:
    """A step of gradient descent, after which no parameter has a gradient."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.sub_(parameter.grad, alpha=lr)
            parameter.grad = None


def check(
    model: Any,
    losses: Losses,
    shared: Callable[[Any], Sequence[Tensor]],
    name: str,
    low_memory: bool,
    *,
    given: bool = True,
    through: Callable[[list[Tensor]], Any] = list,
    measured: Callable[[Any], Tensor] | None = None,
    steps: int = 2,
    tolerance: dict[str, Any] | None = None,
    plain: Losses | None = None,
    **kwargs: Any,
) -> None:
    """Train `model` by `balancer.backward` and a copy by hand, and compare the gradients at every step.

    Args:
        model: what is trained.
        losses: the losses of a model at a step, the same whenever it is asked.
        shared: the shared parameters of a model, in the order of the reference.
        name: of the balancer.
        low_memory: which engine.
        given: whether `backward` is told the shared parameters.
        through: what is done to the list of losses before it is passed on.
        measured: see `backward_by_hand`.
        steps: how many; the first shows little of methods that learn.
        tolerance: of the comparison.
        plain: the losses of the copy, where they are computed in another way. Default: `losses`.
        kwargs: further arguments of `backward`.
    """
    twin = copy.deepcopy(model)
    balancer, by_hand = eager(name), eager(name)
    for step in range(steps):
        of_twin = shared(twin)
        where = None if measured is None else measured(twin)
        expected = backward_by_hand(by_hand, (plain or losses)(twin, step), of_twin, private_of(twin, of_twin), where)
        actual = balancer.backward(
            through(losses(model, step)), shared(model) if given else None, low_memory=low_memory, **kwargs
        )
        if "relative" not in (tolerance or {}):
            torch.testing.assert_close(actual.to(expected), expected, **(tolerance or CLOSE))
        assert_same_gradients(model, twin, **(tolerance or CLOSE))
        descend(model)
        descend(twin)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """Inside, an error is raised whose message is one line and holds one of `words`, whatever their case."""
    with pytest.raises(REFUSALS) as caught:
        yield
    assert_says(caught.value, *words)


@contextmanager
def right_or_refused(*words: str) -> Iterator[None]:
    """Inside, all goes right, or an error is raised as in `refused`. An assertion that fails is neither."""
    try:
        yield
    except REFUSALS as error:
        assert_says(error, *words)


def assert_says(error: BaseException, *words: str) -> None:
    """The message is one line and holds one of `words`."""
    message = str(error)
    assert len(message.splitlines()) == 1, f"more than one line: {message}"
    assert any(word.lower() in message.lower() for word in words), f"none of {', '.join(words)} in: {message}"
