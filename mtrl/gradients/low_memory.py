"""Per-task gradients of large models: the Gramian is summed up layer by layer, and whole rows are never held."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtrl.gradients.autograd import AutogradEngine, Roots
from mtrl.gradients.layout import ParameterLayout
from mtrl.gradients.processes import Ranks
from mtrl.gradients.rows import (
    MaskedLosses,
    NonFiniteGradientError,
    Private,
    TaskGradients,
    products_of_rows,
    without_autocast,
)
from mtrl.gradients.segments import Edge, Segment, cut

Visit = Callable[[Tensor, Tensor], None]  # takes a parameter and its gradients in all passes, (passes, *shape)


class JacobianNotHeldError(ValueError):
    """A method asked for the Jacobian itself, which the low-memory engine never holds."""


class LayerwiseEngine(AutogradEngine):
    """An `AutogradEngine` for many parameters. It holds T rows of one layer at a time, and never T x D numbers.

    The graph is cut into segments with at most one large parameter each, and the T backward passes advance through the
    segments together. Once the gradients of a parameter are known for all tasks, their inner products are added to the
    Gramian, and the gradients are dropped. The update takes one more backward pass, through the weighted sum of the
    losses, and each call of `dot` takes T more. Arguments are those of `AutogradEngine`, and so are results up to
    rounding. But `gather` is not possible, and methods that work on the Jacobian itself raise `JacobianNotHeldError`.

    The graph is kept for as long as the returned `LayerwiseGradients` is.
    """

    def gradients(self, losses: MaskedLosses) -> tuple[TaskGradients, Private]:
        """See `AutogradEngine.gradients`."""
        roots = self._roots(losses)
        layer = self._last_layer(roots.leaves)
        gradients = LayerwiseGradients(roots, self.layout, layer, self._ranks)
        gradients.check_finite()
        return gradients, gradients.private

    def gather(self, losses: MaskedLosses) -> None:
        """Always raises `ValueError`, because the rows of a micro-batch are not kept."""
        raise ValueError("rows are not kept in low-memory mode and can't be gathered over micro-batches")


class LayerwiseGradients(TaskGradients):
    """The gradients of T losses, where a pass through the graph answers each question of a balancer.

    Args:
        roots: the losses.
        layout: the shared parameters.
        layer: the slice of the last shared layer.
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
        """Always raises `JacobianNotHeldError`."""
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
        """The dtype of the gradients."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """The device that holds the gradients."""
        return self._like.device

    def check_finite(self) -> None:
        """Raise `NonFiniteGradientError` if a row holds NaN or infinity."""
        # Squares that overflow in float32 were computed in float64. One that is not finite shows a row that is not.
        for row, square in enumerate(self.squares):
            if not math.isfinite(square):
                raise NonFiniteGradientError(f"the gradient of task {self.task(row)} is not finite", self.task(row))

    def dot(self, vector: Tensor) -> Tensor:
        """`J v` for `v` (D,): (T,), float64; T backward passes."""
        products = torch.zeros(self.num_tasks, dtype=torch.float64, device=self.device)

        def add(parameter: Tensor, rows: Tensor) -> None:
            with without_autocast(rows):
                part = vector[self._layout.slice_of(parameter)].to(rows)
                products.add_((rows.reshape(len(rows), -1) @ part).to(products))

        self._walk.run([{edge: torch.ones_like(loss)} for edge, loss in self._ends()], add)
        return self.ranks.mean_(products)

    def combine(self, coefficients: Tensor, vector: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """`c J + f v`, the update direction (D,), by one backward pass; see `TaskGradients.combine`."""
        update = self._like.new_zeros(self.size)
        seeds: dict[Edge, Tensor] = {}
        for (edge, loss), weight in zip(self._ends(), coefficients.tolist(), strict=True):
            seed = torch.full_like(loss, weight)
            seeds[edge] = seeds[edge] + seed if edge in seeds else seed

        def write(parameter: Tensor, rows: Tensor) -> None:
            update[self._layout.slice_of(parameter)] = rows[0].flatten()

        self._walk.run([seeds], write)
        self.ranks.mean_(update)
        return update if vector is None else update.add_(vector, alpha=factor)

    def _ends(self) -> Iterator[tuple[Edge, Tensor]]:
        return zip(self._roots.edges, (loss.detach() for loss in self._roots.losses), strict=True)

    def _add_products(self, parameter: Tensor, rows: Tensor) -> None:
        self.ranks.mean_(rows)  # before the products are formed, because they are not linear in the rows
        if parameter not in self._layout:
            self.private.append((parameter, rows.sum(0)))
            return
        with without_autocast(rows):
            products = products_of_rows(rows.reshape(len(rows), -1))[0].to(self.gramian.device)
        self.gramian.add_(products)
        if self._layout.slice_of(parameter) == self._layer:
            self._norms = products.diagonal().sqrt()


class _Walk:
    """Several backward passes through the same graph, which advance together, segment by segment."""

    def __init__(self, roots: Roots, layout: ParameterLayout) -> None:
        self._layout = layout
        self._segments = cut(roots.edges, max(parameter.numel() for parameter in layout.parameters))

    def run(self, passes: Sequence[dict[Edge, Tensor]], visit: Visit, private: bool = False) -> None:
        """Take the backward passes.

        Args:
            passes: for each pass, the gradients that it starts with, by edge.
            visit: a function that is called once for every parameter in the graph, with the gradients of all passes.
            private: whether to visit parameters outside the layout, too.
        """
        count = len(passes)
        waiting: Waiting = {}
        for index, seeds in enumerate(passes):
            for edge, seed in seeds.items():
                waiting.setdefault(edge, _Held(seed, count)).add(index, seed)
        unfinished: dict[int, _Held] = {}  # gradients of parameters that a later segment adds to
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
    """The gradients of several passes at one place of the graph, in one tensor (passes, *shape)."""

    def __init__(self, like: Tensor, count: int) -> None:
        self.rows = like.new_zeros(count, *like.shape)
        self.passes: set[int] = set()

    def add(self, index: int, gradient: Tensor) -> None:
        """Add the gradient of one pass."""
        self.rows[index] += gradient
        self.passes.add(index)


Waiting = dict[Edge, _Held]


def _advance(
    segment: Segment, leaves: Sequence[Tensor], waiting: Waiting, rows: dict[int, _Held], index: int, count: int
) -> None:
    """Advance one pass through a segment, from the gradients that wait at its starts to its stops and `leaves`."""
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
    """A context in which backward passes go no further than these nodes."""
    # Autograd notes the gradient that arrives at a node before it calls the node's hooks.
    handles = [node.register_prehook(lambda gradients: (None,) * len(gradients)) for node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
