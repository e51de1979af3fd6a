"""The contract that every balancer fits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mtrl.gradients import AutogradEngine, Losses, TaskGradients

Scale = Literal["sum", "mean"]


@dataclass(frozen=True)
class Balance:
    """What a balancer answers: the update is `coefficients @ J + direction`.

    Attributes:
        coefficients: (T,), one per task.
        direction: (D,), what is not a combination of the rows; None for nearly every method.
        diagnostics: named tensors, detached: (T,) where per task, (T, T) where per pair, () otherwise.
    """

    coefficients: Tensor
    direction: Tensor | None = None
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    def update(self, gradients: TaskGradients) -> Tensor:
        """The combined gradient (D,), which takes the place of the ordinary one."""
        combined = gradients.combine(self.coefficients)
        return combined if self.direction is None else combined + self.direction


class Balancer(nn.Module):
    """Turns the gradients of T losses into one update direction.

    A subclass implements `balance`. State belongs in buffers, parameters or `get_extra_state`, so that `state_dict`
    carries all of it; randomness comes from a generator that the balancer owns.

    Args:
        num_tasks: T. May be left out where a balancer has no per-task state; it is then taken from the losses.
        scale: `"sum"` keeps the scale of a sum over tasks, `"mean"` divides the update by T. Published codes disagree
            by this factor. Default `"sum"`.

    Attributes:
        needs_positive_losses: whether the method divides by losses or takes their logarithm. TD losses are positive,
            actor losses are not.

    Raises:
        ValueError: `num_tasks` is below 1 or `scale` is unknown.
    """

    needs_positive_losses = False

    def __init__(self, num_tasks: int | None = None, *, scale: Scale = "sum") -> None:
        super().__init__()
        if num_tasks is not None and num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}; it must be at least 1")
        if scale not in get_args(Scale):
            raise ValueError(f"unknown scale {scale!r}; scales are {', '.join(get_args(Scale))}")
        self.num_tasks = num_tasks
        self.scale: Scale = scale

    def reset(self) -> None:
        """Return to the state after construction. Stateless methods have nothing to do."""

    def record_returns(self, returns: Tensor) -> None:
        """Tell the method how well each task is doing: `returns` (T,), higher is better. Most methods ignore it."""

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """The method itself: coefficients on the scale of a sum over tasks."""
        raise NotImplementedError

    def forward(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Balance `gradients`, given the detached `losses` (T,).

        Raises:
            ValueError: the number of tasks is not the one the balancer was made for, or a loss that must be positive
                is negative or not finite.
            NonFiniteGradientError: a row holds NaN or infinity.
        """
        if losses.shape != (gradients.num_tasks,):
            raise ValueError(f"got losses of shape {tuple(losses.shape)} and {gradients.num_tasks} gradients")
        if self.num_tasks not in (None, gradients.num_tasks):
            raise ValueError(f"this balancer was made for {self.num_tasks} tasks and got {gradients.num_tasks}")
        if self.needs_positive_losses:
            for task, loss in enumerate(losses.tolist()):
                if not 0 <= loss < math.inf:
                    raise ValueError(f"{type(self).__name__} needs finite losses >= 0; task {task} has {loss:g}")
        gradients.check_finite()
        answer = self.balance(gradients, losses)
        if self.scale == "sum":
            return answer
        direction = None if answer.direction is None else answer.direction / gradients.num_tasks
        return Balance(answer.coefficients / gradients.num_tasks, direction, answer.diagnostics)

    @torch.no_grad()
    def combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """The update (D,) for a dense `jacobian` (T, D) and `losses` (T,)."""
        gradients = TaskGradients(jacobian)
        answer: Balance = self(gradients, losses)
        return answer.update(gradients)

    def backward(
        self,
        losses: Losses,
        parameters: Iterable[Tensor] | None = None,
        last_shared_layer: nn.Module | Tensor | None = None,
    ) -> Tensor:
        """Fill `.grad` in place of `losses.sum().backward()`.

        The shared parameters get the balanced gradient; every other parameter that a loss depends on, such as a
        task's own head, gets the ordinary gradient. Like `Tensor.backward`, it adds to a `.grad` that is there.

        Args:
            losses: T scalars, or one tensor (T,).
            parameters: the shared parameters. Default: those that at least two losses depend on.
            last_shared_layer: where norm-balancing methods measure; see `AutogradEngine` for the default.

        Returns:
            The coefficients (T,) of the task gradients.

        Raises:
            As calling the balancer does, and as `AutogradEngine.backward`; no `.grad` has changed then.
        """
        if self.num_tasks not in (None, len(losses)):
            raise ValueError(f"this balancer was made for {self.num_tasks} tasks and got {len(losses)}")
        engine = AutogradEngine(parameters, last_shared_layer)
        gradients = engine.backward(losses)
        values = torch.stack([loss.detach().reshape(()) for loss in losses])
        with torch.no_grad():
            answer: Balance = self(gradients, values)
            engine.layout.accumulate_grad(answer.update(gradients))
        return answer.coefficients


class RandomBalancer(Balancer):
    """A balancer that makes random choices, from a generator of its own that `state_dict` carries and `reset` restarts.

    Nothing else draws from it, so that a run is reproducible, and every process of a data-parallel run makes the same
    choices.

    Args:
        num_tasks: see `Balancer`.
        seed: of the generator, at least 0. Default 0.
        scale: see `Balancer`.

    Attributes:
        generator: the generator, on the CPU.

    Raises:
        ValueError: `seed` is negative, or as `Balancer`.
    """

    def __init__(self, num_tasks: int | None = None, *, seed: int = 0, scale: Scale = "sum") -> None:
        super().__init__(num_tasks, scale=scale)
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be at least 0")
        self.seed = seed
        self.generator = np.random.Generator(np.random.PCG64(seed))

    def reset(self) -> None:
        """Start the random choices again from the seed."""
        self.generator = np.random.Generator(np.random.PCG64(self.seed))

    def get_extra_state(self) -> dict[str, Any]:
        """The generator's place in its sequence."""
        return dict(self.generator.bit_generator.state)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from the place that `get_extra_state` gave."""
        self.generator.bit_generator.state = state
