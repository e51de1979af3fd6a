"""Per-task gradients of a chain of layers, without autograd.

At the sizes of reinforcement learning, it takes longer to record a graph, to walk it back and to allocate memory for it
than to do the arithmetic. A chain of layers needs no graph: for a given number of rows, buffers and views are made
once, and every update is the same list of operations on them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from mtrl.gradients.layout import ParameterLayout
from mtrl.gradients.processes import Group, Ranks
from mtrl.gradients.rows import RANGES, LooksAt, TaskGradients, TaskRows
from mtrl.gradients.steps import STEPS, Step
from mtrl.gradients.task_major import UnsupportedLayerError
from mtrl.limits import check_number

P = ParamSpec("P")
R = TypeVar("R")


def inference(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` in inference mode, as `torch.inference_mode()` does as a decorator.

    The mode is entered only if it is not on already, because entering it costs more than a small operation.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode():
            return function(*args, **kwargs)

    return run


class Chain:
    """An `nn.Sequential` without autograd.

    The parameters must stay where they are in memory: change them in place. Outputs are computed in PyTorch's inference
    mode, in which an operation costs less. To change an output in place, copy it first.

    Args:
        layers: layers of the types in `STEPS`, none of them twice and no parameter shared between two of them.

    Attributes:
        layers: the layers.
        runs: how many times `forward` has been called.

    Raises:
        UnsupportedLayerError: a layer cannot run in a chain; the message names the first such layer.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        seen: set[nn.Module] = set()
        for index, layer in enumerate(layers):
            # The type must match exactly: a subclass may compute something else with the same parameters.
            if type(layer) not in STEPS or "forward" in vars(layer) or layer in seen:
                kinds = ", ".join(kind.__name__ for kind in STEPS)
                raise UnsupportedLayerError(
                    f"layer '{index}' ({type(layer).__name__}) cannot run without autograd; "
                    f"supported, once each: {kinds}"
                )
            seen.add(layer)
        self.layers = layers
        self._hooks = [  # a layer keeps these dictionaries for as long as it lives
            hooks
            for layer in layers.modules()
            for hooks in (
                layer._forward_hooks,
                layer._forward_pre_hooks,
                layer._backward_hooks,
                layer._backward_pre_hooks,
            )
        ]
        self._by_shape: dict[tuple[int, ...], _Run] = {}  # one for each shape of the input
        self._last: _Run | None = None
        self.runs = 0

    @property
    def hooked(self) -> bool:
        """Whether a layer has a hook, which the chain would not call."""
        return any(self._hooks)

    @inference
    def forward(self, x: Tensor) -> Tensor:
        """The output of the layers for `x` (N, ...). The next call overwrites it."""
        run = self._by_shape.get(x.shape)
        if run is None:
            run = self._by_shape[x.shape] = _Run(self.layers, x)
        self._last = run
        self.runs += 1
        return run.forward(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A chain of the copied layers, with buffers of its own."""
        return type(self)(copy.deepcopy(self.layers, memo))

    @inference
    def backward(self, slope: Tensor, rows: TaskRows, weights: Sequence[float] | None = None) -> None:
        """Go back through the last `forward`. This may be done several times.

        Args:
            slope: the gradient of the output.
            rows: the buffer for the gradients of the parameters.
            weights: T factors; `slope` is cut into T equal parts, and each part is multiplied by its factor. Default:
                every factor is 1.

        Raises:
            RuntimeError: `forward` has not been called.
        """
        if self._last is None:
            raise RuntimeError("nothing to go back through: call `forward` first")
        self._last.backward(slope, rows, weights)

    @inference
    def input_gradient(self, slope: Tensor) -> Tensor:
        """The gradient of the last `forward`'s input, without those of the parameters. The next call overwrites it.

        Args:
            slope: the gradient of the output.

        Raises:
            RuntimeError: `forward` has not been called.
        """
        if self._last is None:
            raise RuntimeError("nothing to go back through: call `forward` first")
        return self._last.input_gradient(slope)


class ParallelChains:
    """Several chains of the same input, such as critics. Their outputs are stacked: (C, N, ...) for C chains.

    Args:
        all_layers: see `Chain`, one for each.

    Attributes:
        layers: the layers of each chain.
        chains: the chains.
        runs: how many times `forward` has been called.

    Raises:
        UnsupportedLayerError: a layer cannot run in a chain; the message names the first such layer.
    """

    def __init__(self, all_layers: Sequence[nn.Sequential]) -> None:
        self.layers = nn.ModuleList(all_layers)
        self.chains = [Chain(layers) for layers in all_layers]
        self.runs = 0

    @property
    def hooked(self) -> bool:
        """Whether a layer has a hook, which the chains would not call."""
        return any(chain.hooked for chain in self.chains)

    @inference
    def forward(self, x: Tensor) -> Tensor:
        """The outputs (C, N, ...) for `x` (N, ...)."""
        self.runs += 1
        return torch.stack([chain.forward(x) for chain in self.chains])

    def backward(self, slope: Tensor, rows: TaskRows, weights: Sequence[float] | None = None) -> None:
        """Go back through the last `forward`; see `Chain.backward`. The slope has the shape of the outputs."""
        for chain, part in zip(self.chains, slope, strict=True):
            chain.backward(part, rows, weights)

    @inference
    def input_gradient(self, slope: Tensor) -> Tensor:
        """The gradient of the last `forward`'s input; see `Chain.input_gradient`."""
        parts = [chain.input_gradient(part) for chain, part in zip(self.chains, slope, strict=True)]
        return torch.stack(parts).sum(0)


_WayBack = tuple[Tensor, list[Callable[[], object]], Tensor | None]


class _Run:
    """The buffers and steps of a chain for one shape of input."""

    def __init__(self, layers: nn.Sequential, like: Tensor) -> None:
        self.x = torch.empty_like(like, memory_format=torch.contiguous_format)
        self.steps: list[Step] = []
        y = self.x
        for layer in layers:
            self.steps.append(STEPS[type(layer)](layer, y))
            y = self.steps[-1].y
        self.y = y
        self._ways_back: dict[TaskRows | None, _WayBack] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.x.copy_(x.detach())
        for step in self.steps:
            step.forward()
        return self.y

    def backward(self, slope: Tensor, rows: TaskRows, weights: Sequence[float] | None) -> None:
        if rows not in self._ways_back:
            self._ways_back[rows] = self._way_back(rows)
        buffer, calls, _ = self._ways_back[rows]
        if weights is None or all(weight == 1 for weight in weights):
            buffer.copy_(slope.detach())
        else:
            parts = (len(weights), len(slope) // len(weights), *slope.shape[1:])
            factors = slope.new_tensor(weights).view(-1, *(1,) * slope.ndim)
            torch.mul(slope.detach().view(parts), factors, out=buffer.view(parts))
        for call in calls:
            call()

    def input_gradient(self, slope: Tensor) -> Tensor:
        if None not in self._ways_back:
            self._ways_back[None] = self._way_back(None)
        buffer, calls, gradient = self._ways_back[None]
        assert gradient is not None  # without rows, every step gives the gradient of its input
        buffer.copy_(slope)
        for call in calls:
            call()
        return gradient

    def _way_back(self, rows: TaskRows | None) -> _WayBack:
        """The buffer of the output's gradient, what to call in turn once it is filled, and the input's gradient.

        Without rows, the functions compute the input's gradient alone; with rows, there may be none.
        """
        slope = torch.empty_like(self.y)
        gradient: Tensor | None = slope
        calls = []
        for index in reversed(range(len(self.steps))):
            assert gradient is not None  # only the first step may return None
            gradient, call = self.steps[index].backward(gradient, rows, index > 0 or rows is None)
            calls.append(call)
        return slope, calls, gradient


class ChainEngine:
    """Per-task gradients of an `nn.Sequential`, or of several, from the gradients of the output, without autograd.

        values = engine.forward(inputs)  # (T * B, ...), the rows of task 0 first
        gradients = engine.backward(slope, losses)  # the rows of task t in slope hold d losses[t] / d values

    All parameters are shared ones. `TaskMajorEngine` gives the same rows for any network and any losses, and the tests
    compare this engine with it.

    Args:
        layers: see `Chain`; or a list of such chains of the same input, whose outputs are stacked (`ParallelChains`).
        num_tasks: T.
        last_shared_layer: see `TaskMajorEngine`.
        group: see `TaskMajorEngine`.

    Raises:
        UnsupportedLayerError: as `Chain`.
        ValueError: `num_tasks` is below 1, or there is no parameter.
    """

    def __init__(
        self,
        layers: nn.Sequential | Sequence[nn.Sequential],
        num_tasks: int,
        last_shared_layer: nn.Module | Tensor | None = None,
        *,
        group: Group = "world",
    ) -> None:
        check_number("num_tasks", num_tasks, least=1, whole=True)
        self.chain = Chain(layers) if isinstance(layers, nn.Sequential) else ParallelChains(layers)
        self.layout = ParameterLayout(self.chain.layers.parameters())
        self._ranks = Ranks(group)
        self._rows = TaskRows(self.layout, num_tasks)
        self._sum = TaskRows(self.layout, 1)
        self._last_layer = self.layout.slice_of_last(last_shared_layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """The output for task-major `inputs` (T * B, ...). The next call overwrites it.

        Raises:
            ValueError: the rows do not divide into T tasks.
        """
        if inputs.shape[0] % self._rows.num_tasks:
            raise ValueError(f"got {inputs.shape[0]} rows, which do not divide into {self._rows.num_tasks} tasks")
        return self.chain.forward(inputs)

    def backward(self, slope: Tensor, losses: Tensor | None = None) -> TaskGradients:
        """The gradients of T losses of the last `forward`'s output.

        The rows are computed only when somebody asks for them, which must happen before the next `forward` and before
        a parameter changes. They are in a buffer that the next gradients overwrite. A method that combines the rows
        without looking at them, as equal weights do, does not need them: their combination alone is then computed.

        Args:
            slope: a tensor of the output's shape; the rows of task t hold the gradient of loss t. It must not change
                until the gradients have been computed.
            losses: the losses (T,) themselves, which the result carries. Default: it carries none.

        Raises:
            RuntimeError: `forward` has not been called.
        """
        if self.chain.runs == 0:
            raise RuntimeError("nothing to go back through: call `forward` first")
        if losses is not None and self._ranks.count() > 1:
            losses = self._ranks.mean_(losses.clone())
        gradients = _ChainGradients(self.chain, slope, self._rows, self._sum, self._last_layer, losses, self._ranks)
        if self._ranks.count() > 1:
            # Averaging needs all processes. Later, one process might ask for rows that another one does not need.
            _ = gradients.jacobian
        return gradients

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """An engine of the copied layers, with buffers of its own."""
        layers = copy.deepcopy(self.chain.layers, memo)
        of_all: Any = list(layers) if isinstance(self.chain, ParallelChains) else layers
        twin = type(self)(of_all, self._rows.num_tasks)
        twin._ranks, twin._last_layer = self._ranks, self._last_layer
        return twin


class _ChainGradients(TaskGradients):
    """Gradients that are computed only when somebody asks for them; see `ChainEngine.backward`."""

    def __init__(
        self,
        chain: Chain | ParallelChains,
        slope: Tensor,
        rows: TaskRows,
        sum_of_rows: TaskRows,
        layer: slice,
        losses: Tensor | None,
        ranks: Ranks,
    ) -> None:
        super().__init__(rows.jacobian, layer, losses=losses, ranks=ranks)
        self._chain, self._run, self._slope = chain, chain.runs, slope
        self._rows, self._sum = rows, sum_of_rows
        self._known = self._checked = False

    @property
    def jacobian(self) -> Tensor:
        """The rows, (T, D).

        Raises:
            RuntimeError: the chain has run forward again before somebody asked for the rows.
        """
        if not self._known:
            self._go_back(self._rows)
            self._known = True
        return self._jacobian

    def prepare(self, looks_at: LooksAt) -> None:
        """See `TaskGradients.prepare`; if the balancer looks at nothing, `combine` makes the check."""
        if looks_at != "nothing":
            super().prepare(looks_at)

    def check_finite(self) -> None:
        """See `TaskGradients.check_finite`."""
        super().check_finite()
        self._checked = True

    def combine(self, coefficients: Tensor, vector: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """See `TaskGradients.combine`. If nobody has asked for the rows, they are not computed.

        Raises:
            NonFiniteGradientError: a row that somebody has asked for holds NaN or infinity, or the combination does.
        """
        weights = coefficients.tolist()
        if not self._known and max(map(abs, weights)) <= RANGES[self.dtype][1]:
            self._go_back(self._sum, weights)
            combined = self._sum.jacobian[0]
            if math.isfinite(combined.sum().item()):
                return combined.clone() if vector is None else torch.add(combined, vector, alpha=factor)
        if not self._checked:
            self.check_finite()
        return super().combine(coefficients, vector, factor)

    def _go_back(self, rows: TaskRows, weights: Sequence[float] | None = None) -> None:
        if self._run != self._chain.runs:
            raise RuntimeError("these gradients were asked for too late: the next `forward` overwrote what they need")
        self._chain.backward(self._slope, rows, weights)
        self.ranks.mean_(rows.jacobian)
