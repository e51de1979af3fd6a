"""Per-task gradients of any graph: one backward pass per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtrl.gradients.layout import ParameterLayout, Parameters, accumulate, as_parameters
from mtrl.gradients.passes import Passes
from mtrl.gradients.processes import Group, Ranks
from mtrl.gradients.roots import MaskedLosses, Roots
from mtrl.gradients.rows import Private, TaskGradients


class AutogradEngine:
    """Per-task gradients of any graph by T backward passes.

    If a loss does not depend on a parameter, its row holds zeros there. In a list of losses, None stands for a task
    that is missing from the batch and gets no row.

    Args:
        parameters: the shared parameters: a module or an iterable of parameters; frozen ones are left out. Default: at
            each `backward`, every `nn.Parameter` that at least two losses depend on in the graph (with one loss, every
            one that it depends on). A loss that went through a tensor together with others, such as one made by
            `torch.stack` and then scaled, is followed back to what it was computed from. Where the graph does not show
            which tasks a parameter belongs to, as in a compiled model, `backward` asks for `parameters`.
        last_shared_layer: the layer or parameter on which norm-balancing methods measure. Default: one of the matrices
            that every loss depends on, or else one that any loss depends on. If `parameters` are given, it is the last
            of these; otherwise it is the one that is nearest to the losses.
        group: the processes of a data-parallel run. Each task's row and loss, and the gradients of other parameters,
            are averaged over them; see `Ranks`. With several processes, `parameters` must be given, and a batch must
            hold the same tasks on every process. Default `"world"`: the default group, if `torch.distributed` is
            initialised.

    Attributes:
        layout: the shared parameters of the last batch.
        reached: for each of them, whether a loss of the last batch depends on it. If not, PyTorch leaves its `.grad`
            alone, and so does this package.

    Raises:
        ValueError: there are no trainable `parameters`, or one is no parameter; see `as_parameters`.
    """

    layout: ParameterLayout
    reached: list[bool]

    def __init__(
        self,
        parameters: Parameters | None = None,
        last_shared_layer: nn.Module | Tensor | None = None,
        *,
        group: Group = "world",
    ) -> None:
        self._given = None if parameters is None else ParameterLayout(as_parameters(parameters))
        if not isinstance(last_shared_layer, nn.Module | Tensor | None):
            kind = type(last_shared_layer).__name__
            raise ValueError(f"last_shared_layer is a {kind}; give the layer, or its weight matrix")
        self._last = last_shared_layer
        self._ranks = Ranks(group)
        self._gathered: tuple[list[bool], Tensor, Tensor, list[bool]] | None = None
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
            ValueError: a loss is not a real scalar with a graph, no parameter is shared, it can't be known which
                parameters are shared, no loss depends on the given ones, or all tasks are missing.
            NonFiniteGradientError: a row holds NaN or infinity.
        """
        gradients, private = self.gradients(losses)
        accumulate(private)
        return gradients

    def gradients(self, losses: MaskedLosses, *, retain_graph: bool = False) -> tuple[TaskGradients, Private]:
        """Like `backward`, but returns the gradients of parameters outside the layout and changes no `.grad`.

        Args:
            losses: see `Balancer.backward`.
            retain_graph: whether the graph can be used again afterwards. Default False, as in `Tensor.backward`.
        """
        roots = self._roots(losses)
        jacobian, private = self._rows(roots, retain_graph)
        layer, mask, values = self._last_layer(roots.leaves), roots.mask, roots.values()
        if self._gathered is not None:
            mask, jacobian, values, self.reached = self._with_gathered(mask, jacobian, values)
            there = torch.tensor(mask, device=jacobian.device)
            jacobian, values = jacobian[there], values[there.to(values.device)]
        self._ranks.mean_all_([jacobian, values])
        private = self._ranks.mean_of(private)
        gradients = TaskGradients(jacobian, layer, mask=mask, losses=values, ranks=self._ranks, names=roots.names)
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
        jacobian, private = self._rows(roots, False)
        self._gathered = self._with_gathered(roots.mask, jacobian, roots.values())
        accumulate(self._ranks.mean_of(private))

    def discard(self) -> None:
        """Forget the rows that `gather` has kept, for example after an error."""
        self._gathered = None

    def _with_gathered(
        self, mask: list[bool], jacobian: Tensor, values: Tensor
    ) -> tuple[list[bool], Tensor, Tensor, list[bool]]:
        """Add the gathered rows and losses; returns the mask, the rows and losses of all tasks, and `reached`."""
        there = torch.tensor(mask, device=jacobian.device)
        total = jacobian.new_zeros(len(mask), jacobian.shape[1])
        total[there] = jacobian
        losses = values.new_zeros(len(mask))
        losses[there.to(values.device)] = values
        if self._gathered is None:
            return mask, total, losses, self.reached
        before, rows, sums, reached = self._gathered
        if len(before) != len(mask):
            raise ValueError(f"got {len(mask)} losses after micro-batches of {len(before)}")
        mask, reached = (
            [a or b for a, b in zip(*pair, strict=True)] for pair in ((before, mask), (reached, self.reached))
        )
        return mask, total.add_(rows), losses.add_(sums), reached

    def _roots(self, losses: MaskedLosses) -> Roots:
        roots = Roots(losses)
        if self._given is None:
            if self._ranks.count() > 1:
                raise ValueError("in a data-parallel run pass `parameters`: their order must not depend on the graph")
            self.layout = ParameterLayout(roots.shared())
        known = {id(leaf) for leaves in roots.leaves for leaf in leaves}
        reached = [id(parameter) in known for parameter in self.layout.parameters]
        if not any(reached):
            raise ValueError("no loss depends on any of the given parameters; are they those of a copy of the model?")
        for parameter in self.layout.parameters:
            if not parameter.requires_grad:
                raise ValueError(
                    f"the parameter of shape {tuple(parameter.shape)} was frozen after the engine was made: it has no "
                    "requires_grad any more; make a new engine"
                )
        _check_agreement(self._ranks, roots.mask, self.layout)
        self.reached = self._ranks.any(reached, self.layout.parameters[0].device)
        return roots

    def _rows(self, roots: Roots, retain_graph: bool) -> tuple[Tensor, Private]:
        """The Jacobian, and the gradients of the parameters outside the layout."""
        layout, passes = self.layout, Passes()
        jacobian = layout.empty(len(roots.losses))
        own = OwnGradients()
        with passes.quiet(leaf for leaves in roots.leaves for leaf in leaves):
            for index, (seeds, leaves) in enumerate(zip(roots.seeds, roots.leaves, strict=True)):
                outside = [leaf for leaf in leaves if leaf not in layout]
                retain = retain_graph or index + 1 < len(roots.losses)
                gradients = passes.gradients(seeds, [*layout.parameters, *outside], retain_graph=retain)
                for row, gradient in zip(layout.split(jacobian[index]), gradients, strict=False):
                    if gradient is None:
                        row.zero_()
                    else:
                        row.copy_(dense(gradient))
                for leaf, gradient in zip(outside, gradients[len(layout.parameters) :], strict=True):
                    own.add(leaf, gradient)
        if self._given is None and roots.doubtful:
            places = {id(p): rows for p, rows in zip(layout.parameters, layout.split(jacobian), strict=True)}
            roots.check_shared({key: zero_rows(places[key]) for key in roots.doubtful if key in places})
        return jacobian, own.pairs()

    def _last_layer(self, reached: Sequence[Sequence[Tensor]]) -> slice:
        if self._last is not None:
            return self.layout.slice_of(self._last)
        from_the_output = self.layout.parameters if self._given is None else self.layout.parameters[::-1]
        tasks = [{id(leaf) for leaf in leaves} for leaves in reached]
        matrices = [parameter for parameter in from_the_output if parameter.ndim >= 2]
        for known in (set.intersection(*tasks), set.union(*tasks)):
            for matrix in matrices:
                if id(matrix) in known:
                    return self.layout.slice_of(matrix)
        return slice(None)


class OwnGradients:
    """The ordinary gradients of parameters that are not shared, added up over the tasks."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, leaf: Tensor, gradient: Tensor | None) -> None:
        """Add the gradient of one task, dense or sparse, which is not changed."""
        if gradient is not None:
            before = self._of.get(id(leaf))
            self._of[id(leaf)] = leaf, gradient if before is None else before[1] + gradient

    def pairs(self) -> Private:
        """The parameters and their gradients."""
        return list(self._of.values())


def dense(gradient: Tensor) -> Tensor:
    """The gradient of a shared parameter.

    Raises:
        ValueError: it is sparse.
    """
    if gradient.layout != torch.strided:
        raise ValueError(
            f"the gradient of a shared parameter of shape {tuple(gradient.shape)} is sparse, which is not supported; "
            "make the embedding with sparse=False, or pass `parameters` without it"
        )
    return gradient


def zero_rows(rows: Tensor) -> list[bool]:
    """Whether all numbers are zero, for each of the rows (T, ...)."""
    return (~rows.flatten(1).any(1)).tolist()


def _check_agreement(ranks: Ranks, mask: Sequence[bool], layout: ParameterLayout) -> None:
    """Raise `ValueError` on every process if the processes cannot average their gradients."""
    device = layout.parameters[0].device
    if ranks.differing((len(mask), layout.size), device):
        raise ValueError("the processes disagree about the number of tasks or of shared parameters")
    for task in ranks.differing(mask, device):
        raise ValueError(f"task {task} is missing on some processes only; let it be there on all of them, or on none")
