"""Per-task gradients of any graph: one backward pass per task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.gradients.core import Losses, ParameterLayout, TaskGradients


def graph_leaves(loss: Tensor | Any) -> list[Tensor]:
    """The leaves that require a gradient and that `loss` (or a node of the graph) depends on, the nearest first."""
    leaves: dict[int, Tensor] = {}
    root = loss.grad_fn if isinstance(loss, Tensor) else loss
    queue: list[Any] = [] if root is None else [root]
    seen = set(queue)
    while queue:
        following = []
        for node in queue:
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                leaves.setdefault(id(leaf), leaf)
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    following.append(child)
        queue = following
    return list(leaves.values())


class AutogradEngine:
    """Per-task gradients of any graph by T backward passes.

    A parameter that a loss does not reach has zeros in that loss's row.

    Args:
        parameters: the shared parameters; frozen ones are left out. Default: found from the graph at each
            `backward`, as the leaves that at least two losses depend on (with one loss, all that it depends on).
            Losses computed in one tensor, other than by `torch.stack`, all depend on the same leaves: where tasks
            have parameters of their own, give a list of losses.
        last_shared_layer: the layer or parameter on which norm-balancing methods measure. Default, among the matrices
            that every loss depends on: the nearest to the losses if the parameters are found from the graph, and the
            last in `parameters` otherwise.
    """

    layout: ParameterLayout

    def __init__(
        self, parameters: Iterable[Tensor] | None = None, last_shared_layer: nn.Module | Tensor | None = None
    ) -> None:
        self._given = None if parameters is None else ParameterLayout(p for p in parameters if p.requires_grad)
        self._last = last_shared_layer
        if self._given is not None:
            self.layout = self._given

    @contextmanager
    def record(self) -> Iterator[None]:
        """Nothing to record: autograd's own graph is enough."""
        yield

    def backward(self, losses: Losses) -> TaskGradients:
        """See `GradientEngine.backward`.

        Raises:
            ValueError: a loss is not a scalar or has no graph, or no parameter is shared.
            NonFiniteGradientError: a row holds NaN or infinity.
        """
        scalars = list(losses.unbind()) if isinstance(losses, Tensor) else list(losses)
        if not scalars:
            raise ValueError("no losses to take gradients of")
        for task, loss in enumerate(scalars):
            if loss.numel() != 1:
                raise ValueError(f"the loss of task {task} has shape {tuple(loss.shape)}; a scalar is needed")
            if loss.grad_fn is None:
                raise ValueError(f"the loss of task {task} does not depend on any parameter")
        reached = [graph_leaves(root) for root in _roots(losses, scalars)]
        if self._given is None:
            self.layout = ParameterLayout(_shared(reached))
        layout = self.layout
        jacobian = layout.empty(len(scalars))
        of_own: list[tuple[Tensor, Tensor]] = []
        for task, (loss, leaves) in enumerate(zip(scalars, reached, strict=True)):
            own = [leaf for leaf in leaves if leaf not in layout]
            wanted = [*layout.parameters, *own]
            gradients = torch.autograd.grad(loss, wanted, retain_graph=task + 1 < len(scalars), allow_unused=True)
            for row, gradient in zip(layout.split(jacobian[task]), gradients, strict=False):
                if gradient is None:
                    row.zero_()
                else:
                    row.copy_(gradient)
            of_own += zip(own, gradients[len(layout.parameters) :], strict=True)
        task_gradients = TaskGradients(jacobian, self._last_layer(reached))
        task_gradients.check_finite()  # before any `.grad` changes
        for leaf, gradient in of_own:
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return task_gradients

    def _last_layer(self, reached: Sequence[Sequence[Tensor]]) -> slice:
        if self._last is not None:
            return self.layout.layer_columns(self._last)
        from_the_output = self.layout.parameters if self._given is None else self.layout.parameters[::-1]
        common = set.intersection(*({id(leaf) for leaf in leaves} for leaves in reached))
        matrices = [parameter for parameter in from_the_output if parameter.ndim >= 2 and id(parameter) in common]
        return self.layout.columns(matrices[0]) if matrices else slice(None)


def _roots(losses: Losses, scalars: Sequence[Tensor]) -> list[Any]:
    """The node of the graph where each loss ends, looking through a `torch.stack` of them.

    Through the stack every loss would seem to depend on every task's parameters.
    """
    if isinstance(losses, Tensor) and losses.grad_fn is not None and losses.grad_fn.name() == "StackBackward0":
        return [node for node, _ in losses.grad_fn.next_functions]
    return [loss.grad_fn for loss in scalars]


def _shared(reached: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The leaves that at least two losses reach; with one loss, all it reaches."""
    leaves = {id(leaf): leaf for leaves in reached for leaf in leaves}
    counts = dict.fromkeys(leaves, 0)
    for task_leaves in reached:
        for leaf in task_leaves:
            counts[id(leaf)] += 1
    shared = [leaf for key, leaf in leaves.items() if counts[key] >= min(2, len(reached))]
    if not shared:
        raise ValueError("the losses share no parameter: there is nothing to balance")
    return shared
