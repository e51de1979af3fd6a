"""The contract that every balancer fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mtrl.gradients import AutogradEngine, Group, LayerwiseEngine, MaskedLosses, TaskGradients, accumulate

Scale = Literal["sum", "mean"]


class Deferred(Mapping[str, Tensor]):
    """Diagnostics that are worked out when somebody looks at them: most updates' nobody does.

    Args:
        make: gives them. What it refers to must not change after the update.
    """

    def __init__(self, make: Callable[[], dict[str, Tensor]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> dict[str, Tensor]:
        made = self._make()
        del self._make  # and what it refers to
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # copied and pickled as what they are

    def __getitem__(self, name: str) -> Tensor:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass(frozen=True)
class Balance:
    """What a balancer answers: the update is `coefficients @ J + direction_scale * direction`.

    Attributes:
        coefficients: (T,), one per task; 0 for a task that is missing from the batch.
        direction: (D,), what is not a combination of the rows; None for nearly every method. It may be the balancer's
            own state: not to be changed, and valid until the next call.
        direction_scale: its factor, apart so that D numbers need not be multiplied and held twice.
        diagnostics: named tensors, detached: (T,) where per task, (T, T) where per pair, () otherwise.
    """

    coefficients: Tensor
    direction: Tensor | None = None
    direction_scale: float = 1.0
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    def update(self, gradients: TaskGradients) -> Tensor:
        """The combined gradient (D,), which takes the place of the ordinary one."""
        there = self.coefficients
        if gradients.mask is not None:
            there = there[torch.tensor(gradients.mask, device=there.device)]
        return gradients.combine(there, self.direction, self.direction_scale)


class Balancer(nn.Module):
    """Turns the gradients of T losses into one update direction.

    A subclass implements `balance`. State belongs in buffers, parameters or `get_extra_state`, so that `state_dict`
    carries all of it; randomness comes from a generator that the balancer owns.

    A task may be missing from a batch. The method then sees the others as if they were all there are, T being their
    number; of its state, what belongs to the missing task waits unchanged. The missing task's coefficient is 0, and its
    diagnostics are NaN.

    Args:
        num_tasks: T. May be left out where a balancer has no per-task state; it is then taken from the losses.
        scale: `"sum"` keeps the scale of a sum over tasks, `"mean"` divides the update by T. Published codes disagree
            by this factor. Default `"sum"`.

    Attributes:
        needs_positive_losses: whether the method divides by losses or takes their logarithm. TD losses are positive,
            actor losses are not.
        needs_rows: whether the method looks at the gradients at all. Where it doesn't, engines may leave them out and
            compute their combination alone; what is not finite in them is then found there, after the method's answer.
            Default True.
        needs_gramian: whether the method always asks for the Gramian, which then shows that the rows are finite, too.
        task_state: names of the attributes, tensors or NumPy arrays, that hold a number for each task (T,) or pair of
            tasks (T, T). While tasks are missing, `balance` finds the rest of them there.

    Raises:
        ValueError: `num_tasks` is below 1 or `scale` is unknown.
    """

    needs_positive_losses = False
    needs_rows = True
    needs_gramian = False
    task_state: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_tasks: int | None = None, *, scale: Scale = "sum") -> None:
        super().__init__()
        if num_tasks is not None and num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}; it must be at least 1")
        if scale not in get_args(Scale):
            raise ValueError(f"unknown scale {scale!r}; scales are {', '.join(get_args(Scale))}")
        self.num_tasks = num_tasks
        self.scale: Scale = scale

    @property
    def looks_at(self) -> Literal["nothing", "rows", "gramian"]:
        """What the method needs of the gradients: nothing, their rows, or their Gramian."""
        if self.needs_gramian:
            return "gramian"
        return "rows" if self.needs_rows else "nothing"

    @property
    def wants_guidance(self) -> bool:
        """Whether `set_guidance` should be called before each update. Default False."""
        return False

    def reset(self) -> None:
        """Return to the state after construction. Stateless methods have nothing to do."""

    def record_returns(self, returns: Tensor) -> None:
        """Tell the method how well each task is doing: `returns` (T,), higher is better. Most methods ignore it."""

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """The method itself: coefficients on the scale of a sum over tasks."""
        raise NotImplementedError

    def forward(self, gradients: TaskGradients, losses: Tensor | None = None) -> Balance:
        """Balance `gradients`.

        Args:
            gradients: of the tasks that are in the batch.
            losses: theirs, detached, one for each row. Default: those that `gradients` carries, which an engine
                averages over the processes of a data-parallel run.

        Raises:
            ValueError: the number of tasks is not the one the balancer was made for, or a loss that must be positive
                is negative or not finite, or losses are neither given nor carried.
            NonFiniteGradientError: a row holds NaN or infinity, unless it is found later; see `needs_rows`.
        """
        losses = gradients.losses if losses is None else losses
        if losses is None:
            raise ValueError("these gradients do not carry their losses: give them")
        mask = gradients.mask
        if losses.shape != (gradients.num_tasks,):
            raise ValueError(f"got losses of shape {tuple(losses.shape)} and {gradients.num_tasks} gradients")
        if self.num_tasks not in (None, num_tasks := gradients.num_tasks if mask is None else len(mask)):
            raise ValueError(f"this balancer was made for {self.num_tasks} tasks and got {num_tasks}")
        if self.needs_positive_losses:
            for row, loss in enumerate(losses.tolist()):
                if not 0 <= loss < math.inf:
                    task = gradients.task(row)
                    raise ValueError(f"{type(self).__name__} needs finite losses >= 0; task {task} has {loss:g}")
        if self.needs_gramian:
            _ = gradients.gramian  # before the check, which then need not look at the rows
        if self.needs_rows or not gradients.checked_when_combined:
            gradients.check_finite()
        if mask is None:
            answer = self.balance(gradients, losses)
        else:
            with self.only(mask):
                answer = self.balance(gradients, losses)
        if self.scale == "mean":
            share = 1 / gradients.num_tasks
            answer = replace(
                answer, coefficients=answer.coefficients * share, direction_scale=answer.direction_scale * share
            )
        return answer if mask is None else _among_all(answer, mask)

    @contextmanager
    def only(self, mask: Sequence[bool]) -> Iterator[None]:
        """Inside, `task_state` (and that of balancers within this one) is that of the tasks in `mask` (T,) alone."""
        balancers = [module for module in self.modules() if isinstance(module, Balancer)]
        held = [(balancer, name, getattr(balancer, name)) for balancer in balancers for name in balancer.task_state]
        there = np.flatnonzero(mask)
        for balancer, name, state in held:
            setattr(balancer, name, None if state is None else state[_places(state, there)])
        try:
            yield
        finally:
            for balancer, name, state in held:
                part = getattr(balancer, name)
                if state is None and part is not None:  # made by this very call: the others' begins at 0
                    state = np.zeros((len(mask),) * part.ndim)  # noqa: PLW2901
                if state is not None:
                    state[_places(state, there)] = part
                setattr(balancer, name, state)

    @torch.no_grad()
    def combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """The update (D,) for a dense `jacobian` (T, D) and `losses` (T,)."""
        gradients = TaskGradients(jacobian)
        answer: Balance = self(gradients, losses)
        return answer.update(gradients)

    def backward(
        self,
        losses: MaskedLosses,
        parameters: Iterable[Tensor] | None = None,
        last_shared_layer: nn.Module | Tensor | None = None,
        *,
        mask: Sequence[bool] | Tensor | None = None,
        low_memory: bool = False,
        group: Group = "world",
        engine: AutogradEngine | None = None,
    ) -> Tensor:
        """Fill `.grad` in place of `losses.sum().backward()`.

        The shared parameters get the balanced gradient; every other parameter that a loss depends on, such as a
        task's own head, gets the ordinary gradient. Like `Tensor.backward`, it adds to a `.grad` that is there: over
        several micro-batches each is balanced by itself. To balance the gradients of all of them once, give an engine:

            engine = AutogradEngine(parameters)
            for batch in micro_batches[:-1]:
                engine.gather(losses(batch))
            balancer.backward(losses(micro_batches[-1]), engine=engine)

        Losses multiplied by a common factor, as `torch.amp.GradScaler.scale` does, multiply the gradients by it. Where
        they overflow, catch `NonFiniteGradientError` and lower the factor by `scaler.update(factor)`.

        Args:
            losses: T scalars, or one tensor (T,). None for a task that is missing from the batch.
            parameters: the shared parameters. Default: those that at least two losses depend on.
            last_shared_layer: where norm-balancing methods measure; see `AutogradEngine` for the default.
            mask: (T,), False for tasks that are missing from the batch. Their losses are not looked at; but where the
                losses were computed in one piece, other than by `torch.stack`, theirs must be finite, too.
            low_memory: never hold T gradients of all shared parameters at once; see `LayerwiseEngine`.
            group: the processes of a data-parallel run; see `AutogradEngine`. None: this process alone.
            engine: takes the gradients in place of the one that `parameters`, `last_shared_layer`, `low_memory` and
                `group` describe.

        Returns:
            The coefficients (T,) of the task gradients.

        Raises:
            As calling the balancer does, and as `AutogradEngine.backward`; no `.grad` has changed then.
            ValueError: `mask` has another length than `losses`, or an engine is given besides what describes one.
        """
        if self.num_tasks not in (None, len(losses)):
            raise ValueError(f"this balancer was made for {self.num_tasks} tasks and got {len(losses)}")
        if engine is None:
            kind = LayerwiseEngine if low_memory else AutogradEngine
            engine = kind(self.shared_parameters(parameters), last_shared_layer, group=group)
        elif parameters is not None or last_shared_layer is not None or low_memory or group != "world":
            raise ValueError("with `engine`, give what describes an engine to the engine")
        else:
            self.shared_parameters(engine.given)
        if mask is not None:
            if len(mask) != len(losses):
                raise ValueError(f"got a mask of {len(mask)} tasks and {len(losses)} losses")
            scalars = losses.unbind() if isinstance(losses, Tensor) else losses
            losses = [loss if there else None for loss, there in zip(scalars, mask, strict=True)]
        gradients, private = engine.gradients(losses)
        with torch.no_grad():
            answer: Balance = self(gradients)
            update = answer.update(gradients)
            accumulate(private)
            engine.layout.accumulate_grad(update)
        return answer.coefficients

    def shared_parameters(self, parameters: Iterable[Tensor] | None) -> Iterable[Tensor] | None:
        """What `backward` takes for the shared parameters when it is given `parameters`; a method may know better."""
        return parameters


def _places(state: Any, there: Any) -> Any:
    """The index into `state`, (T,), (T, T) or (), of the tasks `there`."""
    return np.ix_(*(there,) * state.ndim) if state.ndim else ()


def _among_all(answer: Balance, mask: Sequence[bool]) -> Balance:
    """The answer for tasks of which some are missing: (T,) and (T, T) in place of what is there for the others."""
    there = np.flatnonzero(mask)

    def spread(part: Tensor, rest: float) -> Tensor:
        if part.ndim == 0:
            return part
        whole = part.new_full((len(mask),) * part.ndim, rest)
        whole[_places(whole, there)] = part
        return whole

    parts = answer.diagnostics
    diagnostics = Deferred(lambda: {name: spread(part, math.nan) for name, part in parts.items()})
    return replace(answer, coefficients=spread(answer.coefficients, 0.0), diagnostics=diagnostics)


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
