"""Per-task gradients of large models: the Gramian is summed up layer by layer, and whole rows are never held."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtrl.gradients.autograd import AutogradEngine, OwnGradients, dense, zero_rows
from mtrl.gradients.graph import MODULE_HOOK, Edge, check_functions, leaf_of
from mtrl.gradients.layout import ParameterLayout
from mtrl.gradients.passes import Passes
from mtrl.gradients.processes import Ranks
from mtrl.gradients.roots import MaskedLosses, Roots
from mtrl.gradients.rows import (
    NonFiniteGradientError,
    Private,
    TaskGradients,
    norms_of_rows,
    products_of_rows,
    without_autocast,
)
from mtrl.gradients.segments import Segment, cut

Visit = Callable[[Tensor, Tensor], None]  # takes a parameter and its gradients in all passes, (passes, *shape)
UNFIT = {MODULE_HOOK: "a module has a backward hook, which is not supported with low_memory=True"}


class JacobianNotHeldError(ValueError):
    """A method asked for the Jacobian itself, which the low-memory engine never holds."""


class LayerwiseEngine(AutogradEngine):
    """An `AutogradEngine` for many parameters. It holds T rows of one layer at a time, and never T x D numbers.

    The graph is cut into segments with at most one large parameter each, and the T backward passes advance through the
    segments together. Once the gradients of a parameter are known for all tasks, their inner products are added to the
    Gramian, and the gradients are dropped. The update takes one more backward pass, through the weighted sum of the
    losses, and each call of `dot` takes T more. Arguments are those of `AutogradEngine`, and so are results up to
    rounding. But `gather` is not possible, and methods that work on the Jacobian itself raise `JacobianNotHeldError`.

    The graph is kept for as long as the returned `LayerwiseGradients` is; see `LayerwiseGradients.free_graph`.
    """

    def gradients(self, losses: MaskedLosses, *, retain_graph: bool = False) -> tuple[TaskGradients, Private]:
        """See `AutogradEngine.gradients`. The graph is freed once the update has been computed from it."""
        roots = self._roots(losses)
        check_functions(
            roots.nodes, {MODULE_HOOK: "modules with backward hooks are not supported with low_memory=True"}
        )
        layer = self._last_layer(roots.leaves)
        gradients = LayerwiseGradients(roots, self.layout, layer, self._ranks, doubt=self._given is None)
        gradients.retain_graph = retain_graph
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
        doubt: whether the layout was found from the graph and has to be checked; see `Roots.check_shared`.

    Attributes:
        private: the ordinary gradients of the parameters outside the layout.
        retain_graph: whether the graph can be used again after `free_graph`.
    """

    def __init__(self, roots: Roots, layout: ParameterLayout, layer: slice, ranks: Ranks, *, doubt: bool) -> None:
        self._layout = layout
        self._like = layout.empty(0)
        self._layer = layer
        self.mask = None if all(roots.mask) else tuple(roots.mask)
        self.names = roots.names
        self.ranks = ranks
        self.losses = ranks.mean_(roots.values())
        self._roots = roots
        self.retain_graph = True
        self._is_last = False
        self._passes = Passes()
        self._walk = _Walk(roots, layout, self._passes)
        self._norms: Tensor | None = None
        self._is_zero: dict[int, Sequence[bool]] | None = {} if doubt and roots.doubtful else None
        gramian = torch.zeros(self.num_tasks, self.num_tasks, dtype=torch.float64, device=self.device)
        self._products = gramian, []
        own = OwnGradients()
        self._walk.run(roots.seeds, self._add_products, own)
        if self._is_zero is not None:
            roots.check_shared(self._is_zero)
        self.private: Private = ranks.mean_of(own.pairs())
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
                raise NonFiniteGradientError(f"the gradient of {self.name(row)} is not finite", self.task(row))

    def free_graph(self) -> None:
        """Let the next `combine` be the last that the graph is used for, and free it, unless `retain_graph`."""
        self._is_last = True

    def dot(self, vector: Tensor) -> Tensor:
        """`J v` for `v` (D,): (T,), float64; T backward passes."""
        products = torch.zeros(self.num_tasks, dtype=torch.float64, device=self.device)

        def add(parameter: Tensor, rows: Tensor) -> None:
            with without_autocast(rows):
                part = vector[self._layout.slice_of(parameter)].to(rows)
                products.add_((rows.reshape(len(rows), -1) @ part).to(products))

        self._walk.run(self._roots.seeds, add)
        return self.ranks.mean_(products)

    def combine(self, coefficients: Tensor, vector: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """`c J + f v`, the update direction (D,), by one backward pass; see `TaskGradients.combine`."""
        starts: dict[Edge, Tensor] = {}
        for seeds, weight in zip(self._roots.seeds, coefficients.tolist(), strict=True):
            for edge, seed in seeds.items():
                starts[edge] = starts[edge] + weight * seed if edge in starts else weight * seed
        parameters = self._layout.parameters
        retain = self.retain_graph or not self._is_last
        with self._passes.quiet(parameters):
            gradients = self._passes.gradients(starts, parameters, retain_graph=retain)
        update = self._like.new_empty(self.size)
        for part, gradient in zip(self._layout.split(update), gradients, strict=True):
            if gradient is None:
                part.zero_()
            else:
                part.copy_(gradient)
        self.ranks.mean_(update)
        self._check(update, coefficients)
        return update if vector is None else update.add_(vector, alpha=factor)

    def _check(self, update: Tensor, coefficients: Tensor) -> None:
        """Raise `ValueError` if |c J|^2 is not c G c: the two come from different passes through the graph.

        A hook that changes gradients runs twice in the passes for G where the graph is cut at its tensor, and one that
        is not linear acts on another gradient in the pass for c J.
        """
        weights = coefficients.to(self.gramian)
        expected = float(weights @ self.gramian @ weights)
        largest = float(weights.abs() @ self.gramian.diagonal().sqrt()) ** 2
        actual = float(norms_of_rows(update[None])) ** 2
        tolerance = max(0.03, 32 * torch.finfo(self.dtype).eps)  # autocast alone may make a difference of 0.01
        if math.isfinite(largest) and not abs(actual - expected) <= tolerance * largest:
            raise ValueError(
                "the update does not agree with the task gradients: in low-memory mode, hooks inside the graph that "
                "change gradients and random backward passes are not supported; use low_memory=False"
            )

    def _add_products(self, parameter: Tensor, rows: Tensor) -> None:
        self.ranks.mean_(rows)  # before the products are formed, because they are not linear in the rows
        if self._is_zero is not None and id(parameter) in self._roots.doubtful:
            self._is_zero[id(parameter)] = zero_rows(rows)
        with without_autocast(rows):
            products = products_of_rows(rows.reshape(len(rows), -1))[0].to(self.gramian.device)
        self.gramian.add_(products)
        if self._layout.slice_of(parameter) == self._layer:
            self._norms = products.diagonal().sqrt()


Waiting = dict[Edge, "_Held"]


class _Walk:
    """Several backward passes through the same graph, which advance together, segment by segment."""

    def __init__(self, roots: Roots, layout: ParameterLayout, passes: Passes) -> None:
        self._layout = layout
        self._passes = passes
        self._leaves = list({id(leaf): leaf for leaves in roots.leaves for leaf in leaves}.values())
        starts = dict.fromkeys(edge for seeds in roots.seeds for edge in seeds)
        self._segments = cut(list(starts), max(parameter.numel() for parameter in layout.parameters))

    def run(self, starts: Sequence[Mapping[Edge, Tensor]], visit: Visit, own: OwnGradients | None = None) -> None:
        """Take the backward passes.

        Args:
            starts: for each pass, the gradients that it starts with, by edge.
            visit: a function that is called once for every shared parameter in the graph, with the gradients of all
                passes.
            own: where gradients of other parameters are added up. Default: they are not computed.
        """
        count = len(starts)
        waiting: Waiting = {}
        unfinished: dict[int, _Held] = {}  # gradients of parameters that a later segment adds to

        def add(leaf: Tensor, index: int, gradient: Tensor) -> None:
            if leaf in self._layout:
                unfinished.setdefault(id(leaf), _Held(leaf, count)).add(index, dense(gradient))
            elif own is not None:
                own.add(leaf, gradient)

        for index, seeds in enumerate(starts):
            for edge, seed in seeds.items():
                if (leaf := leaf_of(edge[0])) is None:
                    waiting.setdefault(edge, _Held(seed, count)).add(index, seed)
                else:  # the loss was computed from the parameter itself
                    add(leaf, index, seed)
        with self._passes.quiet(self._leaves):
            for segment in self._segments:
                leaves = [leaf for leaf in segment.leaves if own is not None or leaf in self._layout]
                with _ending_at(segment.blocked):
                    for index in range(count):
                        for leaf, gradient in self._advance(segment, leaves, waiting, index, count):
                            add(leaf, index, gradient)
                for edge in segment.starts:
                    waiting.pop(edge, None)
                for leaf in leaves:
                    if id(leaf) in segment.complete and id(leaf) in unfinished:
                        visit(leaf, unfinished.pop(id(leaf)).rows)
        for leaf in self._leaves:
            if id(leaf) in unfinished:
                visit(leaf, unfinished[id(leaf)].rows)

    def _advance(
        self, segment: Segment, leaves: Sequence[Tensor], waiting: Waiting, index: int, count: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Advance one pass through a segment, from the gradients that wait at its starts to its stops.

        Returns:
            The gradients that arrived at `leaves`.
        """
        here = [edge for edge in segment.starts if edge in waiting and index in waiting[edge].passes]
        seeds = {edge: waiting[edge].rows[index] for edge in here}
        inputs = [*leaves, *(GradientEdge(*edge) for edge in segment.stops)]
        gradients = self._passes.gradients(seeds, inputs, retain_graph=True)
        for edge, gradient in zip(segment.stops, gradients[len(leaves) :], strict=True):
            if gradient is not None:
                if edge not in waiting:
                    waiting[edge] = _Held(gradient, count)
                waiting[edge].add(index, gradient)
        arrived = zip(leaves, gradients, strict=False)
        return [(leaf, gradient) for leaf, gradient in arrived if gradient is not None]


class _Held:
    """The gradients of several passes at one place of the graph, in one tensor (passes, *shape)."""

    def __init__(self, like: Tensor, count: int) -> None:
        self.rows = like.new_zeros(count, *like.shape)
        self.passes: set[int] = set()

    def add(self, index: int, gradient: Tensor) -> None:
        """Add the gradient of one pass."""
        self.rows[index] += gradient
        self.passes.add(index)


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
