"""The interface of every balancer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mtrl.gradients import (
    AutogradEngine,
    Group,
    LayerwiseEngine,
    LooksAt,
    MaskedLosses,
    Parameters,
    TaskGradients,
    accumulate,
    by_task,
)
from mtrl.guidance import GuidanceLoss
from mtrl.limits import check_choice, check_number
from mtrl.memory import DirectionMemory
from mtrl.states import check_form

Scale = Literal["sum", "mean"]


class Deferred(Mapping[str, Tensor]):
    """Diagnostics that are computed only when somebody reads them, because after most updates nobody does.

    Args:
        make: a function that computes them. Nothing that it refers to may change after the update.
    """

    def __init__(self, make: Callable[[], dict[str, Tensor]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> dict[str, Tensor]:
        made = self._make()
        del self._make  # this frees everything that the function refers to
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a copy, pickled or not, is a plain dictionary

    def __getitem__(self, name: str) -> Tensor:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass(frozen=True)
class Balance:
    """A balancer's answer: the update is `coefficients @ J + direction_scale * direction`.

    Attributes:
        coefficients: (T,), one per task; 0 for a task that is missing from the batch.
        direction: (D,), the part of the update that is not a combination of the rows; None for nearly every method. It
            may be the balancer's own state: do not change it, and do not use it after the next call.
        direction_scale: the factor of `direction`. It is kept apart so that the D numbers need not be multiplied into a
            second vector.
        diagnostics: detached tensors by name: (T,) with a number per task, (T, T) with a number per pair of tasks, or
            () with a single number.
    """

    coefficients: Tensor
    direction: Tensor | None = None
    direction_scale: float = 1.0
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.coefficients, Tensor):
            raise TypeError(
                f"the coefficients of a Balance are a {type(self.coefficients).__name__}, not a tensor (T,)"
            )

    def update(self, gradients: TaskGradients) -> Tensor:
        """The combined gradient (D,), to be used in place of the gradient of the summed losses."""
        there = self.coefficients
        if gradients.mask is not None:
            there = there[torch.tensor(gradients.mask, device=there.device)]
        return gradients.combine(there, self.direction, self.direction_scale)


NAMES = "task_names"
"""The key in a state dict of the names of the tasks, in the order of what the method knows about each."""


class Balancer(nn.Module):
    """Turns the gradients of T losses into one update direction.

    A subclass implements `balance`. It keeps its state in buffers, parameters or `get_extra_state`, so that
    `state_dict` holds all of it, and draws random numbers from a generator of its own.

    A task may be missing from a batch. The method then works as if the other tasks were the only ones, and T is their
    number. The state of the missing task stays unchanged. Its coefficient is 0, and its diagnostics are NaN.

    Args:
        num_tasks: T. It may be left out for a balancer without state per task; T is then the number of losses.
        scale: `"sum"` keeps the scale of a sum over tasks, `"mean"` divides the update by T. Published codes disagree
            by this factor. Default `"sum"`.

    Attributes:
        looks_at: how much of the gradients the method looks at before it answers. `"nothing"`: an engine may compute
            the combination of the rows without the rows, and a number that is not finite is then found after the
            answer. `"rows"`: the method may ask for anything. `"gramian"`: it also asks for the Gramian at every call.
            Default `"rows"`.
        needs_positive_losses: whether the method divides by losses or takes their logarithm. Temporal-difference losses
            are positive; the losses of actors are not. Default False.
        for_any_losses: the argument with which the method takes losses of any sign, for messages.
        wants_guidance: whether the method makes use of `set_guidance`. Default False.
        guidance_loss: how one guidance loss is made of the tasks' held-out losses, for whoever makes the guidance; see
            `LookaheadGuidance`. Default `"sum"`.
        has_memory: whether the method itself turns updates towards past ones. An agent then has no memory of its own
            unless it is asked for one. Default False.
        task_state: the names of attributes, tensors or NumPy arrays, that hold a number for each task (T,) or for each
            pair of tasks (T, T). While tasks are missing, `balance` sees only the numbers of the others.

    Raises:
        ValueError: `num_tasks` is below 1 or `scale` is unknown.
    """

    looks_at: LooksAt = "rows"
    needs_positive_losses = False
    for_any_losses = "another method"
    wants_guidance = False
    guidance_loss: GuidanceLoss = "sum"
    has_memory = False
    task_state: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_tasks: int | None = None, *, scale: Scale = "sum") -> None:
        super().__init__()
        if num_tasks is not None:
            check_number("num_tasks", num_tasks, least=1, whole=True)
        check_choice("scale", scale, get_args(Scale))
        self.num_tasks = num_tasks
        self._names: tuple[str, ...] = ()
        self.scale: Scale = scale

    def reset(self) -> None:
        """Return to the state after construction. A method without state does nothing."""

    def check_state(self, size: int) -> None:
        """Check a state that was loaded from a file, as far as `load_state_dict` does not.

        Args:
            size: D.

        Raises:
            ValueError: the state is not that of this method for T tasks and gradients of D numbers, or is not finite.
        """
        for name, state in self.named_buffers(recurse=False):
            if not bool(state.isfinite().all()):
                raise ValueError(f"{type(self).__name__}'s {name} holds a number that is not finite")
        for part in self.children():
            if isinstance(part, Balancer):
                part.check_state(size)

    def record_returns(self, returns: Tensor) -> None:
        """Tell the method how well each task is doing: `returns` (T,), higher is better. Most methods ignore it."""

    def set_guidance(self, gradient: Callable[[Tensor], Tensor] | None, eta: float = 1.0) -> None:
        """Tell the method where the loss on a held-out guidance set is lower; see `wants_guidance`.

        Args:
            gradient: a function that takes a step (D,) and returns the gradient (D,) of the guidance loss at the
                parameters minus that step, without side effects; see `LookaheadGuidance`. Both vectors are in the order
                of the Jacobian's rows. None: no guidance.
            eta: the step of an update is eta times the update; the learning rate of plain gradient descent. Default 1.

        Raises:
            ValueError: the method takes no guidance, or `eta` is not above 0 and finite.
        """
        if gradient is not None:
            raise ValueError(f"{type(self).__name__} takes no guidance")

    def balance(self, gradients: TaskGradients, losses: Tensor) -> Balance:
        """Compute the answer of the method, with coefficients on the scale of a sum over tasks."""
        raise NotImplementedError

    def forward(self, gradients: TaskGradients, losses: Tensor | None = None) -> Balance:
        """Balance `gradients`.

        Args:
            gradients: the gradients of the tasks that are in the batch.
            losses: the losses of these tasks, detached, one for each row. Default: the losses that `gradients` carries;
                an engine averages them over the processes of a data-parallel run.

        Raises:
            ValueError: the balancer was made for another number of tasks, or a loss that must be positive is negative
                or not finite, or losses are neither given nor carried.
            NonFiniteGradientError: a row holds NaN or infinity. If the method looks at nothing, an engine may find this
                only when the rows are combined.
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
                    hint = f"; for losses of any sign use {self.for_any_losses}" if loss < 0 else ""
                    kind, task = type(self).__name__, gradients.name(row)
                    raise ValueError(f"{kind} needs finite losses >= 0; {task} has {loss:g}{hint}")
        gradients.prepare(self.looks_at)
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
        """Inside this context, `task_state` holds the numbers of the tasks in `mask` (T,) alone.

        The same is true of the `task_state` of balancers that are part of this one.
        """
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
                if state is None and part is not None:  # this call made the state; the missing tasks begin at 0
                    state = np.zeros((len(mask),) * part.ndim)  # noqa: PLW2901
                if state is not None:
                    state[_places(state, there)] = part
                setattr(balancer, name, state)

    @torch.no_grad()
    def combine(self, jacobian: Tensor, losses: Tensor) -> Tensor:
        """The update (D,), of the jacobian's dtype, for a dense `jacobian` (T, D) and `losses` (T,)."""
        gradients = TaskGradients(jacobian)
        answer: Balance = self(gradients, losses)
        return answer.update(gradients).to(jacobian.dtype)

    def backward(
        self,
        losses: MaskedLosses,
        parameters: Parameters | None = None,
        last_shared_layer: nn.Module | Tensor | None = None,
        *,
        mask: Sequence[bool] | Tensor | None = None,
        retain_graph: bool = False,
        low_memory: bool = False,
        group: Group = "world",
        engine: AutogradEngine | None = None,
        memory: DirectionMemory | None = None,
    ) -> Tensor:
        """Fill `.grad` in place of `losses.sum().backward()`.

        The shared parameters get the balanced gradient; every other leaf that a loss depends on, such as a parameter of
        a task's own head, gets the ordinary gradient. This adds to a `.grad` that is there, as `Tensor.backward` does.
        Each of several micro-batches is then balanced by itself. To balance them as one batch, give an engine:

            engine = AutogradEngine(parameters)
            for batch in micro_batches[:-1]:
                engine.gather(losses(batch))
            balancer.backward(losses(micro_batches[-1]), engine=engine)

        A common factor of the losses, such as that of `torch.amp.GradScaler.scale`, multiplies the gradients, too. If
        they overflow, catch `NonFiniteGradientError` and lower the factor by `scaler.update(factor)`.

        Args:
            losses: T scalars in an iterable, a dict by task, or a tensor (T,). None stands for a task without data.
            parameters: the shared parameters. Default: those that at least two losses depend on; see `AutogradEngine`.
            last_shared_layer: the layer on which norm-balancing methods measure; see `AutogradEngine` for the default.
            mask: (T,), False for tasks that are missing from the batch. Their losses are ignored.
            retain_graph: keep the graph, so that it can be used again. Default False, as in `Tensor.backward`.
            low_memory: never hold T gradients of all shared parameters at once; see `LayerwiseEngine`.
            group: the processes of a data-parallel run; see `AutogradEngine`. None: this process alone.
            engine: the engine that computes the gradients, in place of one that the other arguments describe.
            memory: turns the shared gradient towards what past ones had in common. Default: it stays as it is.

        Returns:
            The coefficients (T,) of the task gradients, in the order of `losses`.

        Raises:
            ValueError: `mask` is not as long as `losses`, or an engine comes with what describes one; or as `forward`.
            NonFiniteGradientError: a row holds NaN or infinity. After both errors no `.grad` has changed.
        """
        names, losses = self._in_order(losses, mask)
        if engine is None:
            kind = LayerwiseEngine if low_memory else AutogradEngine
            engine = kind(self.shared_parameters(parameters), last_shared_layer, group=group)
        elif parameters is not None or last_shared_layer is not None or low_memory or group != "world":
            raise ValueError("with `engine`, give what describes an engine to the engine")
        else:
            self.shared_parameters(engine.given)
        gradients, private = engine.gradients(losses, retain_graph=retain_graph)
        with torch.no_grad():
            answer: Balance = self(gradients)
            gradients.free_graph()
            update = answer.update(gradients) if memory is None else memory.turn_(answer.update(gradients))
            accumulate([*private, *engine.layout.gradients(update, engine.reached)])
            return answer.coefficients if names is None else answer.coefficients[[*map(self._names.index, names)]]

    def _in_order(
        self, losses: MaskedLosses, mask: Sequence[bool] | Tensor | None
    ) -> tuple[tuple[str, ...] | None, MaskedLosses]:
        """The names of a dict's tasks, and one loss per task: None where `mask` is False.

        The losses of a dict come in the order of the first dict, which the state of the method goes by.
        """
        names, scalars = by_task(losses)
        if self.num_tasks not in (None, len(scalars)):
            raise ValueError(f"this balancer was made for {self.num_tasks} tasks and got {len(scalars)}")
        if mask is not None and len(mask) != len(scalars):
            raise ValueError(f"got a mask of {len(mask)} tasks and {len(scalars)} losses")
        if mask is not None:
            scalars = [loss if there else None for loss, there in zip(scalars, mask, strict=True)]
        if names is None:
            return None, scalars
        of_task = dict(zip(names, scalars, strict=True))
        self._names = self._names or names
        if of_task.keys() != set(self._names):
            raise ValueError(
                f"the losses are those of {', '.join(names)}, and in earlier calls those of {', '.join(self._names)}; "
                "give None for a task without data"
            )
        return names, {name: of_task[name] for name in self._names}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._names:
            destination[f"{prefix}{NAMES}"] = self._names

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = state_dict.pop(f"{prefix}{NAMES}", None)  # it is no parameter
        super()._load_from_state_dict(state_dict, prefix, *args)
        if names is not None:
            check_form("the balancer's task_names", names, (str,) * len(names))
            if self._names and set(names) != set(self._names):
                raise ValueError(f"the state is of the tasks {', '.join(names)}, not of {', '.join(self._names)}")
            self._names = tuple(names)

    def shared_parameters(self, parameters: Parameters | None) -> Parameters | None:
        """The shared parameters that `backward` uses when it is given `parameters`; a method may replace them."""
        return parameters


def _places(state: Any, there: Any) -> Any:
    """The index that selects the numbers of the tasks `there` from `state`, which is (T,), (T, T) or ()."""
    return np.ix_(*(there,) * state.ndim) if state.ndim else ()


def _among_all(answer: Balance, mask: Sequence[bool]) -> Balance:
    """Extend an answer for the tasks in `mask` to all T tasks, with 0 and NaN for the missing ones."""
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


def vector(numbers: Sequence[Any]) -> Tensor:
    """Numbers, or rows of numbers, as a tensor in float64."""
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")
