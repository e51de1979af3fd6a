"""The losses of the tasks: their checks, their names, and the places in the graph where backward passes begin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mtrl.gradients.graph import Edge, check_functions, graph_leaves, leaf_of, operation, shape_at, shared_joins
from mtrl.gradients.origins import Origins

MaskedLosses = Tensor | Mapping[str, Tensor | None] | Iterable[Tensor | None]
"""One loss per task: a tensor (T,), an iterable of scalars, or a mapping from the tasks' names to scalars. None stands
for a task without data in this batch."""


def by_task(losses: MaskedLosses) -> tuple[tuple[str, ...] | None, list[Tensor | None]]:
    """The tasks' names, if the losses have names, and the losses, one scalar per task.

    Raises:
        ValueError: the losses are one number, or none, or no collection.
    """
    if isinstance(losses, Mapping):
        names, scalars = tuple(str(name) for name in losses), list(losses.values())
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks have the same name as text: {', '.join(map(repr, losses))}")
    elif isinstance(losses, Tensor):
        if losses.ndim == 0:
            raise ValueError("the losses are one number, such as their sum; give one loss per task, in a list")
        names, scalars = None, list(losses.unbind())
    elif isinstance(losses, Iterable) and not isinstance(losses, str):
        names, scalars = None, list(losses)
    else:
        raise ValueError(f"the losses are {losses!r}; give one loss per task, in a list")
    if all(loss is None for loss in scalars):
        raise ValueError("no losses to take gradients of")
    return names, scalars


class Roots:
    """The losses of the tasks that are in a batch, and the places in the graph where they begin their way back.

    Args:
        losses: one scalar per task; None for a task that is missing.

    Attributes:
        names: the names of all tasks, or None if the losses have no names.
        mask: for each of all tasks, whether it is in the batch.
        losses: the losses of the tasks in the batch.
        seeds: for each of these losses, the gradients with which its backward pass begins, by their places in the
            graph. A loss that was computed by itself begins at its own node. A loss that went through a tensor together
            with others begins where that tensor's numbers came from.
        leaves: for each of these losses, the leaves that it depends on.

    Raises:
        ValueError: a loss is not a scalar, is complex, or has no graph, or all losses are missing, or the graph holds a
            function that does not work with several backward passes.
    """

    def __init__(self, losses: MaskedLosses) -> None:
        self.names, scalars = by_task(losses)
        self.mask = [loss is not None for loss in scalars]
        self.losses: list[Tensor] = []
        self.seeds: list[dict[Edge, Tensor]] = []
        starts: list[list[Edge]] = []
        origins = Origins()
        self._numbers: dict[int, list[int]] = {}  # for a leaf, by id, the numbers of it that losses take
        for task, loss in enumerate(scalars):
            if loss is None:
                continue
            _check(loss, self.name(task))
            self.losses.append(loss)
            end = get_gradient_edge(loss)
            places = origins.of((end.node, end.output_nr))
            starts.append(list(dict.fromkeys(edge for edge, _ in places)))
            for (node, _), number in places:
                if (leaf := leaf_of(node)) is not None:
                    self._numbers.setdefault(id(leaf), []).append(number)
            self.seeds.append(_seeds(loss, starts[-1]))
        self._starts = starts
        check_functions(self.nodes)
        self.leaves = [graph_leaves(*(node for node, _ in edges)) for edges in starts]

    @property
    def nodes(self) -> list[Any]:
        """The nodes where the backward passes begin."""
        return [node for edges in self._starts for node, _ in edges]

    def name(self, task: int) -> str:
        """What messages call a task, which is counted among all tasks."""
        return f"task {task}" if self.names is None else f"task {self.names[task]}"

    def values(self) -> Tensor:
        """The losses (T,), detached."""
        return torch.stack([loss.detach().reshape(()) for loss in self.losses])

    def shared(self) -> list[Tensor]:
        """The parameters that at least two losses depend on; with one loss, all parameters that it depends on.

        Raises:
            ValueError: there are none.
        """
        behind = {id(leaf) for leaf in graph_leaves(*(node for node in self.nodes if leaf_of(node) is None))}
        counts: dict[int, int] = {}
        leaves: dict[int, Tensor] = {}
        for reached in self.leaves:
            for leaf in reached:
                if isinstance(leaf, nn.Parameter):
                    leaves[id(leaf)] = leaf
                    counts[id(leaf)] = counts.get(id(leaf), 0) + 1
        several = [leaf for key, leaf in leaves.items() if counts[key] >= min(2, len(self.losses))]
        # Of a vector such as one log-variance per task, each loss takes a number of its own.
        shared = [leaf for leaf in several if id(leaf) in behind or self._is_used_twice(leaf)]
        if not shared:
            plain = any(not isinstance(leaf, nn.Parameter) for reached in self.leaves for leaf in reached)
            hint = "; tensors that are no nn.Parameter count where they are given as `parameters`" if plain else ""
            raise ValueError(f"the losses share no parameter: there is nothing to balance{hint}")
        return shared

    def _is_used_twice(self, leaf: Tensor) -> bool:
        """Whether several losses, or the only one, take the same number of a leaf."""
        numbers = self._numbers[id(leaf)]
        return len(self.losses) == 1 or len(set(numbers)) < len(numbers)

    @cached_property
    def doubtful(self) -> dict[int, Tensor]:
        """The parameters, by id, of which the graph does not show for certain which tasks depend on them.

        They are the parameters behind an operation that joins numbers of several tensors, or behind a compiled or
        custom function, if several tasks depend on its result.
        """
        return {id(leaf): leaf for leaf in graph_leaves(*self._joins) if isinstance(leaf, nn.Parameter)}

    @cached_property
    def _joins(self) -> list[Any]:
        """The nodes behind which parameters are doubtful."""
        joins = shared_joins([[node for node, _ in edges] for edges in self._starts])
        mixed = [edge for edges in self._starts for edge in edges if shape_at(edge).numel() > 1]
        return list(dict.fromkeys([*joins, *(edge[0] for edge in mixed if mixed.count(edge) > 1)]))

    def check_shared(self, is_zero: Mapping[int, Sequence[bool]]) -> None:
        """Check that each task that seems to depend on a doubtful parameter has a gradient on it.

        A gradient that is exactly zero for some tasks and not for others shows that the parameter may belong to the
        others alone. A task whose gradients are zero on all doubtful parameters shows nothing.

        Args:
            is_zero: for each doubtful parameter that counts as shared, by id, whether each task's gradient is zero.

        Raises:
            ValueError: a parameter has a gradient from some of the tasks only.
        """
        reached = [{id(leaf) for leaf in leaves} for leaves in self.leaves]
        silent = [all(column) for column in zip(*is_zero.values(), strict=True)]
        for key, zeros in is_zero.items():
            telling = [
                zero
                for zero, of_task, is_silent in zip(zeros, reached, silent, strict=True)
                if key in of_task and not is_silent
            ]
            if any(telling) and not all(telling):
                raise ValueError(
                    f"the graph does not show which tasks the parameter of shape {tuple(self.doubtful[key].shape)} "
                    f"belongs to, because they are joined by {operation(self._joins[0])}: pass `parameters`, the "
                    "parameters that the tasks share"
                )


def _check(loss: Any, name: str) -> None:
    """Raise `ValueError` if a loss is not one real number with a graph."""
    if not isinstance(loss, Tensor):
        raise ValueError(f"the loss of {name} is a {type(loss).__name__}; a tensor with a graph is needed")
    if loss.numel() != 1:
        raise ValueError(f"the loss of {name} has shape {tuple(loss.shape)}; a scalar is needed")
    if loss.is_complex():
        raise ValueError(f"the loss of {name} is complex; a real number, such as its absolute value, is needed")
    if not loss.requires_grad:
        raise ValueError(f"the loss of {name} does not depend on any parameter; is it detached, or a constant?")


def _seeds(loss: Tensor, starts: Sequence[Edge]) -> dict[Edge, Tensor]:
    """The gradients of a loss at the places where its own part of the graph begins."""
    end = get_gradient_edge(loss)
    one = torch.ones_like(loss, memory_format=torch.contiguous_format)
    if starts == [(end.node, end.output_nr)]:
        return {starts[0]: one}
    inputs = [GradientEdge(*edge) for edge in starts]
    gradients = torch.autograd.grad([end], inputs, [one], retain_graph=True, allow_unused=True)
    return {edge: seed for edge, seed in zip(starts, gradients, strict=True) if seed is not None}
