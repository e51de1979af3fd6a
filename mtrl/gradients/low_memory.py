"""Per-task gradients of any graph that are never held all at once: the Gramian is summed up layer by layer."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtrl.gradients.autograd import AutogradEngine, Roots
from mtrl.gradients.processes import Ranks
from mtrl.gradients.rows import (
    MaskedLosses,
    NonFiniteGradientError,
    ParameterLayout,
    Private,
    TaskGradients,
    products_of_rows,
    without_autocast,
)

Edge = tuple[Any, int]  # a node of the graph and the number of one of its inputs in the backward pass
Visit = Callable[[Tensor, Tensor], None]  # gets a parameter and its gradients by all passes, (passes, *shape)


class JacobianNotHeldError(ValueError):
    """A method asked for the Jacobian itself where it is never held."""


class LayerwiseEngine(AutogradEngine):
    """`AutogradEngine` for many parameters: it holds T rows of one layer at a time, never T x D numbers.

    The graph is cut into segments with at most one large parameter each, and the T backward passes advance through
    them in step. When all tasks' gradients of a parameter are there, their inner products are added to the Gramian and
    they are dropped. The update is then one more backward pass, through the weighted sum of the losses. `dot` costs
    another T. Arguments and, up to rounding, results are those of `AutogradEngine`; `gather` is not possible, and
    methods that work on the Jacobian itself raise `JacobianNotHeldError`.

    The graph is kept until the answer, a `LayerwiseGradients`, is dropped.
    """

    def gradients(self, losses: MaskedLosses) -> tuple[TaskGradients, Private]:
        """See `AutogradEngine.gradients`."""
        roots = self._roots(losses)
        layer = self._last_layer(roots.leaves)
        gradients = LayerwiseGradients(roots, self.layout, layer, self._ranks)
        gradients.check_finite()
        return gradients, gradients.private

    def gather(self, losses: MaskedLosses) -> None:
        """Not possible: the rows of a micro-batch are not kept.

        Raises:
            ValueError: always.
        """
        raise ValueError("rows are not kept in low-memory mode and can't be gathered over micro-batches")


class LayerwiseGradients(TaskGradients):
    """The gradients of T losses by what balancers ask of them, each answer from a pass through the graph.

    Args:
        roots: the losses.
        layout: the shared parameters.
        layer: columns of the last shared layer.
        ranks: the processes of a data-parallel run.

    Attributes:
        private: the ordinary gradients of the parameters outside the layout.
    """

    def __init__(self, roots: Roots, layout: ParameterLayout, layer: slice, ranks: Ranks) -> None:
        self._layout = layout
        self._like = layout.empty(0)
        self._layer = layer
        self.mask = None if all(roots.mask) else tuple(roots.mask)
        self.ranks = ranks
        self.losses = ranks.mean_(roots.values())
        self._roots = roots
        self._walk = _Walk(roots, layout)
        self.private: Private = []
        self._norms: Tensor | None = None
        gramian = torch.zeros(self.num_tasks, self.num_tasks, dtype=torch.float64, device=self.device)
        self._products = gramian, []
        self._walk.run([{edge: torch.ones_like(loss)} for edge, loss in self._ends()], self._add_products, True)
        self._products = gramian, gramian.diagonal().tolist()
        self.layer_norms = gramian.diagonal().sqrt() if self._norms is None else self._norms

    @property
    def jacobian(self) -> Tensor:
        """Never held.

        Raises:
            JacobianNotHeldError: always.
        """
        raise JacobianNotHeldError("this method works on the whole Jacobian, which low-memory mode never holds")

    @property
    def num_tasks(self) -> int:
        """T, the number of losses."""
        return len(self._roots.losses)

    @property
    def size(self) -> int:
        """D, the number of shared parameters."""
        return self._layout.size

    @property
    def dtype(self) -> torch.dtype:
        """The gradients' dtype."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the gradients are."""
        return self._like.device

    def check_finite(self) -> None:
        """Raise `NonFiniteGradientError` if a row holds NaN or infinity."""
        # Squares that overflow in float32 have been taken in float64: what is not finite here was not before.
        for row, square in enumerate(self.squares):
            if not math.isfinite(square):
                raise NonFiniteGradientError(f"the gradient of task {self.task(row)} is not finite", self.task(row))

    def dot(self, vector: Tensor) -> Tensor:
        """`J v` for `v` (D,): (T,), float64; T backward passes."""
        products = torch.zeros(self.num_tasks, dtype=torch.float64, device=self.device)

        def add(parameter: Tensor, rows: Tensor) -> None:
            with without_autocast(rows):
                part = vector[self._layout.columns(parameter)].to(rows)
                products.add_((rows.reshape(len(rows), -1) @ part).to(products))

        self._walk.run([{edge: torch.ones_like(loss)} for edge, loss in self._ends()], add)
        return self.ranks.mean_(products)

    def combine(self, coefficients: Tensor, vector: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """`c J + f v`, the update direction (D,), by one backward pass; see `TaskGradients`."""
        update = self._like.new_zeros(self.size)
        seeds: dict[Edge, Tensor] = {}
        for (edge, loss), weight in zip(self._ends(), coefficients.tolist(), strict=True):
            seed = torch.full_like(loss, weight)
            seeds[edge] = seeds[edge] + seed if edge in seeds else seed

        def write(parameter: Tensor, rows: Tensor) -> None:
            update[self._layout.columns(parameter)] = rows[0].flatten()

        self._walk.run([seeds], write)
        self.ranks.mean_(update)
        return update if vector is None else update.add_(vector, alpha=factor)

    def _ends(self) -> Iterator[tuple[Edge, Tensor]]:
        return zip(self._roots.edges, (loss.detach() for loss in self._roots.losses), strict=True)

    def _add_products(self, parameter: Tensor, rows: Tensor) -> None:
        self.ranks.mean_(rows)  # before the products: they are not linear
        if parameter not in self._layout:
            self.private.append((parameter, rows.sum(0)))
            return
        with without_autocast(rows):
            products = products_of_rows(rows.reshape(len(rows), -1))[0].to(self.gramian.device)
        self.gramian.add_(products)
        if self._layout.columns(parameter) == self._layer:
            self._norms = products.diagonal().sqrt()


@dataclass(frozen=True)
class _Segment:
    """A part of the graph: where gradients come in, where they leave it, and the parameters they reach inside."""

    starts: list[Edge]
    stops: list[Edge]
    leaves: list[Tensor]
    complete: set[int]  # ids of the leaves that no later segment reaches
    blocked: list[Any]  # nodes among the stops that lead to other stops or leaves: there passes must be made to end


class _Walk:
    """Several backward passes through the same graph, in step, segment by segment."""

    def __init__(self, roots: Roots, layout: ParameterLayout) -> None:
        self._layout = layout
        self._segments = _segments(roots.edges, max(parameter.numel() for parameter in layout.parameters))

    def run(self, passes: Sequence[dict[Edge, Tensor]], visit: Visit, private: bool = False) -> None:
        """Take the backward passes.

        Args:
            passes: for each, the gradients that it starts with, by edge.
            visit: called once for every parameter that the graph reaches, with its gradients by all passes.
            private: visit parameters outside the layout, too.
        """
        count = len(passes)
        waiting: Waiting = {}
        for index, seeds in enumerate(passes):
            for edge, seed in seeds.items():
                waiting.setdefault(edge, _Held(seed, count)).add(index, seed)
        unfinished: dict[int, _Held] = {}  # gradients of parameters that later segments reach, too
        for segment in self._segments:
            leaves = [leaf for leaf in segment.leaves if private or leaf in self._layout]
            rows = {id(leaf): unfinished.pop(id(leaf)) for leaf in leaves if id(leaf) in unfinished}
            with _ending_at(segment.blocked):
                for index in range(count):
                    _advance(segment, leaves, waiting, rows, index, count)
            for edge in segment.starts:
                waiting.pop(edge, None)
            for leaf in leaves:
                if id(leaf) in rows and id(leaf) in segment.complete:
                    visit(leaf, rows.pop(id(leaf)).rows)
            unfinished |= rows


class _Held:
    """The gradients of several passes at one place, in one tensor (passes, *shape)."""

    def __init__(self, like: Tensor, count: int) -> None:
        self.rows = like.new_zeros(count, *like.shape)
        self.passes: set[int] = set()

    def add(self, index: int, gradient: Tensor) -> None:
        """Add the gradient of one pass."""
        self.rows[index] += gradient
        self.passes.add(index)


Waiting = dict[Edge, _Held]


def _advance(
    segment: _Segment, leaves: Sequence[Tensor], waiting: Waiting, rows: dict[int, _Held], index: int, count: int
) -> None:
    """Take one pass through a segment: from gradients that wait at its starts to its stops and to the `leaves`."""
    starts = [edge for edge in segment.starts if edge in waiting and index in waiting[edge].passes]
    inputs: list[Any] = [*leaves, *(GradientEdge(*edge) for edge in segment.stops)]
    if not starts or not inputs:
        return
    seeds = [waiting[edge].rows[index] for edge in starts]
    outputs = [GradientEdge(*edge) for edge in starts]
    gradients = torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, allow_unused=True)
    for leaf, gradient in zip(leaves, gradients, strict=False):
        if gradient is not None:
            if id(leaf) not in rows:
                rows[id(leaf)] = _Held(leaf, count)
            rows[id(leaf)].add(index, gradient)
    for edge, gradient in zip(segment.stops, gradients[len(leaves) :], strict=True):
        if gradient is not None:
            if edge not in waiting:
                waiting[edge] = _Held(gradient, count)
            waiting[edge].add(index, gradient)


@contextmanager
def _ending_at(nodes: Sequence[Any]) -> Iterator[None]:
    """Inside, backward passes go no further than these nodes."""
    # Autograd takes the gradient that arrives at a node before it calls the node's hooks.
    handles = [node.register_prehook(lambda gradients: (None,) * len(gradients)) for node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _segments(roots: Sequence[Edge], limit: int) -> list[_Segment]:
    """Cut the graph into segments that complete parameters of about `limit` numbers at most; see `_parts`."""
    order, children = _in_order([node for node, _ in roots])
    last_use = _last_use(order, children)
    position = {node: index for index, node in enumerate(order)}
    below = dict.fromkeys(order, 0)  # the set of nodes that it leads to, as the bits of one number
    for node in reversed(order):
        for child, _ in children[node]:
            below[node] |= below[child] | 1 << position[child]

    segments = []
    pending = dict.fromkeys(roots)
    for part in _parts(order, children, limit):
        inside = set(part)
        away = [(child, number) for node in part for child, number in children[node] if child not in inside]
        leaves = {child: _leaf(child) for child, _ in away if _leaf(child) is not None}
        stops = {edge: None for edge in away if edge[0] not in leaves}
        targets = 0
        for node in (nodes := dict.fromkeys(child for child, _ in away)):
            targets |= 1 << position[node]
        segments.append(
            _Segment(
                starts=[edge for edge in pending if edge[0] in inside],
                stops=list(stops),
                leaves=list(leaves.values()),
                complete={id(leaf) for node, leaf in leaves.items() if last_use[node] in inside},
                blocked=[node for node in nodes if below[node] & targets],
            )
        )
        pending = {edge: None for edge in (*pending, *stops) if edge[0] not in inside}
    return segments


def _parts(order: Sequence[Any], children: dict[Any, list[Edge]], limit: int) -> list[list[Any]]:
    """The nodes that are no leaves, in order, in parts.

    The parameters that a part completes have at most `limit` numbers, or belong to one node. That includes what stands
    between the two, as the transposition of a linear layer's matrix: the gradient waits on neither side of it.
    """
    last_use = _last_use(order, children)
    numbers = dict.fromkeys(order, 0)
    for leaf, node in last_use.items():
        numbers[node] += _leaf(leaf).numel()
    groups: list[list[Any]] = []
    for node in order:
        if _leaf(node) is not None:
            continue
        if not groups or any(_leaf(child) is None for child, _ in children[node]):
            groups.append([])
        groups[-1].append(node)
    parts: list[list[Any]] = [[]]
    size = 0
    for group in groups:
        of_group = sum(numbers[node] for node in group)
        if size and size + of_group > limit:
            parts.append([])
            size = 0
        parts[-1] += group
        size += of_group
    return parts


def _last_use(order: Sequence[Any], children: dict[Any, list[Edge]]) -> dict[Any, Any]:
    """For each leaf the node after which its gradient is complete."""
    return {child: node for node in order for child, _ in children[node] if _leaf(child) is not None}


def _in_order(roots: Sequence[Any]) -> tuple[list[Any], dict[Any, list[Edge]]]:
    """All nodes, each before those that it leads to and side branches before the trunk; and where each leads."""
    children: dict[Any, list[Edge]] = {}
    queue = list(dict.fromkeys(roots))
    while queue:
        node = queue.pop()
        if node not in children:
            children[node] = [(child, number) for child, number in node.next_functions if child is not None]
            queue += [child for child, _ in children[node]]
    height = dict.fromkeys(children, 1)
    for node in reversed(_sorted(children, dict.fromkeys(children, 0))):
        height[node] += max((height[child] for child, _ in children[node]), default=0)
    return _sorted(children, height), children


def _sorted(children: dict[Any, list[Edge]], key: dict[Any, int]) -> list[Any]:
    """The nodes, each before those that it leads to; among several that may be next, the one of the smallest key."""
    uses = dict.fromkeys(children, 0)
    for edges in children.values():
        for child, _ in edges:
            uses[child] += 1
    number = itertools.count()  # for ties
    ready = [(key[node], next(number), node) for node, count in uses.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        *_, node = heapq.heappop(ready)
        order.append(node)
        for child, _ in children[node]:
            uses[child] -= 1
            if not uses[child]:
                heapq.heappush(ready, (key[child], next(number), child))
    return order


def _leaf(node: Any) -> Any:
    """The parameter whose gradient a node accumulates, or None."""
    return getattr(node, "variable", None)
