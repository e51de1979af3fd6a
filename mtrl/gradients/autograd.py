"""Per-task gradients of any graph: one backward pass per task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mtrl.gradients.layout import ParameterLayout, accumulate
from mtrl.gradients.processes import Group, Ranks
from mtrl.gradients.rows import MaskedLosses, Private, TaskGradients


def graph_leaves(loss: Tensor | Any) -> list[Tensor]:
    """The trainable leaves that `loss`, a tensor or a node of the graph, depends on, the nearest first."""
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


class Roots:
    """The losses of the tasks that are in a batch, and the places in the graph where they begin their way back.

    Args:
        losses: one scalar per task; None for a task that is missing.

    Attributes:
        mask: for each of all tasks, whether it is in the batch.
        losses: the losses of the tasks in the batch.
        edges: for each of these losses, the node of the graph that computed it and the number of the node's output.
        leaves: for each of these losses, the leaves that it depends on.

    Raises:
        ValueError: a loss is not a scalar or has no graph, or all losses are missing.
    """

    def __init__(self, losses: MaskedLosses) -> None:
        scalars = list(losses.unbind()) if isinstance(losses, Tensor) else list(losses)
        if all(loss is None for loss in scalars):
            raise ValueError("no losses to take gradients of")
        self.mask = [loss is not None for loss in scalars]
        self.losses: list[Tensor] = []
        self.edges: list[tuple[Any, int]] = []
        for task, loss in enumerate(scalars):
            if loss is None:
                continue
            if loss.numel() != 1:
                raise ValueError(f"the loss of task {task} has shape {tuple(loss.shape)}; a scalar is needed")
            edge = _end(loss)
            if edge[0] is None:
                raise ValueError(f"the loss of task {task} does not depend on any parameter")
            self.losses.append(loss)
            self.edges.append(edge)
        self.leaves = [graph_leaves(node) for node, _ in self.edges]

    def values(self) -> Tensor:
        """The losses (T,), detached."""
        return torch.stack([loss.detach().reshape(()) for loss in self.losses])


class AutogradEngine:
    """Per-task gradients of any graph by T backward passes.

    If a loss does not depend on a parameter, its row holds zeros there. In a list of losses, None stands for a task
    that is missing from the batch and gets no row.

    Args:
        parameters: the shared parameters; frozen ones are left out. Default: at each `backward`, the leaves of the
            graph that at least two losses depend on (with one loss, all leaves that it depends on). Losses that were
            computed in one tensor, other than by `torch.stack`, all depend on the same leaves. If tasks have parameters
            of their own, give a list of losses.
        last_shared_layer: the layer or parameter on which norm-balancing methods measure. Default: one of the matrices
            that every loss depends on. If `parameters` are given, it is the last of these; otherwise it is the one that
            is nearest to the losses.
        group: the processes of a data-parallel run. Each task's row and loss, and the gradients of other parameters,
            are averaged over them; see `Ranks`. With several processes, `parameters` must be given, and a batch must
            hold the same tasks on every process. Default `"world"`: the default group, if `torch.distributed` is
            initialised.
    """

    layout: ParameterLayout

    def __init__(
        self,
        parameters: Iterable[Tensor] | None = None,
        last_shared_layer: nn.Module | Tensor | None = None,
        *,
        group: Group = "world",
    ) -> None:
        self._given = None if parameters is None else ParameterLayout(p for p in parameters if p.requires_grad)
        self._last = last_shared_layer
        self._ranks = Ranks(group)
        self._gathered: tuple[list[bool], Tensor, Tensor] | None = None
        if self._given is not None:
            self.layout = self._given

    @property
    def given(self) -> tuple[Tensor, ...] | None:
        """The shared parameters that the engine was given, or None if it finds them from the graph."""
        return None if self._given is None else self._given.parameters

    @contextmanager
    def record(self) -> Iterator[None]:
        """A context manager that does nothing, because autograd's own graph is enough."""
        yield

    def backward(self, losses: MaskedLosses) -> TaskGradients:
        """See `GradientEngine.backward`.

        Raises:
            ValueError: a loss is not a scalar or has no graph, no parameter is shared, or all tasks are missing.
            NonFiniteGradientError: a row holds NaN or infinity.
        """
        gradients, private = self.gradients(losses)
        accumulate(private)
        return gradients

    def gradients(self, losses: MaskedLosses) -> tuple[TaskGradients, Private]:
        """Like `backward`, but returns the gradients of parameters outside the layout and changes no `.grad`."""
        roots = self._roots(losses)
        jacobian, private = self._rows(roots)
        layer, mask, values = self._last_layer(roots.leaves), roots.mask, roots.values()
        if self._gathered is not None:
            mask, jacobian, values = self._with_gathered(mask, jacobian, values)
            there = torch.tensor(mask, device=jacobian.device)
            jacobian, values = jacobian[there], values[there.to(values.device)]
        self._ranks.mean_all_([jacobian, values, *(gradient for _, gradient in private)])
        gradients = TaskGradients(jacobian, layer, mask=mask, losses=values, ranks=self._ranks)
        gradients.check_finite()
        self._gathered = None
        return gradients, private

    def gather(self, losses: MaskedLosses) -> None:
        """Keep the rows and losses of a micro-batch; the next `backward` adds them to its own.

        In this way a batch that is too large for one graph is balanced once, by the gradients of the whole batch. If a
        task is missing from some micro-batches, its row is the sum over the others. Parameters outside the layout get
        their ordinary `.grad` at once.

        Raises:
            ValueError: as `backward`; or the engine was made without `parameters`, or the number of tasks changed.
        """
        if self._given is None:
            raise ValueError("rows can only be added up over parameters that are given: pass `parameters`")
        roots = self._roots(losses)
        jacobian, private = self._rows(roots)
        self._ranks.mean_all_([gradient for _, gradient in private])
        self._gathered = self._with_gathered(roots.mask, jacobian, roots.values())
        accumulate(private)

    def discard(self) -> None:
        """Forget the rows that `gather` has kept, for example after an error."""
        self._gathered = None

    def _with_gathered(self, mask: list[bool], jacobian: Tensor, values: Tensor) -> tuple[list[bool], Tensor, Tensor]:
        """Add the gathered rows and losses; returns the mask, and the rows and losses of all tasks."""
        there = torch.tensor(mask, device=jacobian.device)
        total = jacobian.new_zeros(len(mask), jacobian.shape[1])
        total[there] = jacobian
        losses = values.new_zeros(len(mask))
        losses[there.to(values.device)] = values
        if self._gathered is None:
            return mask, total, losses
        before, rows, sums = self._gathered
        if len(before) != len(mask):
            raise ValueError(f"got {len(mask)} losses after micro-batches of {len(before)}")
        return [a or b for a, b in zip(before, mask, strict=True)], total.add_(rows), losses.add_(sums)

    def _roots(self, losses: MaskedLosses) -> Roots:
        roots = Roots(losses)
        if self._given is None:
            if self._ranks.count() > 1:
                raise ValueError("in a data-parallel run pass `parameters`: their order must not depend on the graph")
            self.layout = ParameterLayout(_shared(roots.leaves))
        _check_agreement(self._ranks, roots.mask, self.layout)
        return roots

    def _rows(self, roots: Roots) -> tuple[Tensor, Private]:
        """The Jacobian, and the gradients of the parameters outside the layout."""
        layout = self.layout
        jacobian = layout.empty(len(roots.losses))
        of_own: dict[int, tuple[Tensor, Tensor]] = {}
        for index, (loss, edge, leaves) in enumerate(zip(roots.losses, roots.edges, roots.leaves, strict=True)):
            own = [leaf for leaf in leaves if leaf not in layout]
            wanted = [*layout.parameters, *own]
            retain = index + 1 < len(roots.losses)
            end, seed = GradientEdge(*edge), torch.ones_like(loss)
            gradients = torch.autograd.grad(end, wanted, seed, retain_graph=retain, allow_unused=True)
            for row, gradient in zip(layout.split(jacobian[index]), gradients, strict=False):
                if gradient is None:
                    row.zero_()
                else:
                    row.copy_(gradient)
            for leaf, gradient in zip(own, gradients[len(layout.parameters) :], strict=True):
                if gradient is None:
                    continue
                if id(leaf) in of_own:
                    of_own[id(leaf)][1].add_(gradient)
                else:  # autograd may return one tensor for two leaves, so each gets a copy
                    of_own[id(leaf)] = (leaf, gradient.clone(memory_format=torch.contiguous_format))
        return jacobian, list(of_own.values())

    def _last_layer(self, reached: Sequence[Sequence[Tensor]]) -> slice:
        if self._last is not None:
            return self.layout.slice_of(self._last)
        from_the_output = self.layout.parameters if self._given is None else self.layout.parameters[::-1]
        common = set.intersection(*({id(leaf) for leaf in leaves} for leaves in reached))
        matrices = [parameter for parameter in from_the_output if parameter.ndim >= 2 and id(parameter) in common]
        return self.layout.slice_of(matrices[0]) if matrices else slice(None)


def _end(loss: Tensor) -> tuple[Any, int]:
    """The node of the graph that computed a loss, and the number of the node's output.

    If the loss is an element of a tensor that `torch.stack` made, the node is the one that computed the element before
    it was stacked. Otherwise every loss would seem to depend on every task's parameters.
    """
    node: Any = loss.grad_fn
    if node is not None and node.name() == "UnbindBackward0":
        whole: Any = node.next_functions[0][0]
        if whole is not None and whole.name() == "StackBackward0" and node._saved_dim == whole._saved_dim == 0:
            part: tuple[Any, int] = whole.next_functions[loss.output_nr]
            return part
    return node, loss.output_nr


def _check_agreement(ranks: Ranks, mask: Sequence[bool], layout: ParameterLayout) -> None:
    """Raise `ValueError` on every process if the processes cannot average their gradients."""
    device = layout.parameters[0].device
    if ranks.differing((len(mask), layout.size), device):
        raise ValueError("the processes disagree about the number of tasks or of shared parameters")
    for task in ranks.differing(mask, device):
        raise ValueError(f"task {task} is missing on some processes only; let it be there on all of them, or on none")


def _shared(reached: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The leaves that at least two losses depend on; with one loss, all leaves that it depends on."""
    leaves = {id(leaf): leaf for leaves in reached for leaf in leaves}
    counts = dict.fromkeys(leaves, 0)
    for task_leaves in reached:
        for leaf in task_leaves:
            counts[id(leaf)] += 1
    shared = [leaf for key, leaf in leaves.items() if counts[key] >= min(2, len(reached))]
    if not shared:
        raise ValueError("the losses share no parameter: there is nothing to balance")
    return shared
