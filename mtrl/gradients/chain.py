"""Per-task gradients of a chain of layers, without autograd.

At the sizes of reinforcement learning, recording a graph, walking it back and allocating what it holds cost more than
the arithmetic. A chain of layers needs none of it: for a given number of rows, buffers and views are made once, and an
update is a fixed list of operations into them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from mtrl.gradients.processes import Group, Ranks
from mtrl.gradients.rows import RANGES, ParameterLayout, TaskGradients
from mtrl.gradients.rules import TaskRows, hooks_of
from mtrl.gradients.task_major import UnsupportedLayerError, last_layer_columns

P = ParamSpec("P")
R = TypeVar("R")


def inference(function: Callable[P, R]) -> Callable[P, R]:
    """As `torch.inference_mode()`, but entered only where it is not on: entering costs more than a small operation."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode():
            return function(*args, **kwargs)

    return run


NARROW = 24
"""Inputs up to which a layer's gradient is faster turned round, as (in, out), by up to four times, and then copied."""


class Step:
    """One layer of a chain, for a fixed number of rows N: what `register_step` takes.

    The constructor makes `y`, the buffer (N, ...) of the output, and `forward` fills it from `x`. It should allocate as
    little as it can.

    Args:
        layer: the layer. Its parameters must stay where they are in memory.
        x: the buffer of the input, (N, ...). A step may work in place: nobody else needs it.
    """

    y: Tensor

    def __init__(self, layer: Any, x: Tensor) -> None:
        raise NotImplementedError

    def forward(self) -> None:
        """Fill `y`."""
        raise NotImplementedError

    def backward(self, grad: Tensor, rows: TaskRows, needs_input: bool) -> tuple[Tensor | None, Callable[[], object]]:
        """Prepare to go back through the layer, once for all updates.

        Args:
            grad: the buffer of the gradient of `y`.
            rows: where the gradients of parameters go, by task.
            needs_input: whether the gradient of `x` is wanted.

        Returns:
            The buffer of the gradient of `x`, None where it is not wanted; and what is called at each update to fill
            that and the rows of the layer's parameters.
        """
        raise NotImplementedError


class _LinearStep(Step):
    def __init__(self, layer: nn.Linear, x: Tensor) -> None:
        self.layer, self.x = layer, x
        self.weight, self.weight_t = layer.weight.detach(), layer.weight.detach().t()
        self.bias = self.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
        self.y = x.new_empty(len(x), layer.out_features)

    def forward(self) -> None:
        torch.addmm(self.bias, self.x, self.weight_t, out=self.y)

    def backward(self, grad: Tensor, rows: TaskRows, needs_input: bool) -> tuple[Tensor | None, Callable[[], object]]:
        grad_x = torch.empty_like(self.x) if needs_input else None
        x_by_task = self.x.view(rows.num_tasks, -1, self.x.shape[1])  # (T, B, in)
        grad_by_task = grad.view(rows.num_tasks, -1, grad.shape[1])  # (T, B, out)
        weight_rows = rows.of(self.layer.weight)  # (T, out, in)
        bias_rows = None if self.layer.bias is None else rows.of(self.layer.bias)  # (T, out)
        if x_by_task.shape[2] <= NARROW:  # (T, in, out), which is then copied
            left, right, product = x_by_task.mT, grad_by_task, self.x.new_empty(weight_rows.mT.shape)
        else:
            left, right, product = grad_by_task.mT, x_by_task, weight_rows
        turned = product.mT

        def run() -> None:
            torch.bmm(left, right, out=product)
            if product is not weight_rows:
                weight_rows.copy_(turned)
            if bias_rows is not None:
                torch.sum(grad_by_task, 1, out=bias_rows)
            if grad_x is not None:
                torch.mm(grad, self.weight, out=grad_x)

        return grad_x, run


class _ReLUStep(Step):
    def __init__(self, layer: nn.ReLU, x: Tensor) -> None:
        self.y = x  # in place, and so is its gradient

    def forward(self) -> None:
        self.y.relu_()

    def backward(self, grad: Tensor, rows: TaskRows, needs_input: bool) -> tuple[Tensor | None, Callable[[], object]]:
        return grad, lambda: torch.ops.aten.threshold_backward.grad_input(grad, self.y, 0, grad_input=grad)


class _LayerNormStep(Step):
    def __init__(self, layer: nn.LayerNorm, x: Tensor) -> None:
        self.layer, self.x, self.y = layer, x, torch.empty_like(x)
        # PyTorch's kernel takes twice as long without a scale and a shift as with those that change nothing.
        self.weight = x.new_ones(layer.normalized_shape) if layer.weight is None else layer.weight.detach()
        self.bias = x.new_zeros(layer.normalized_shape) if layer.bias is None else layer.bias.detach()

    def forward(self) -> None:
        # A copy of its result costs less than its variant that fills a buffer.
        y, self.mean, self.rstd = torch.native_layer_norm(
            self.x, self.layer.normalized_shape, self.weight, self.bias, self.layer.eps
        )
        self.y.copy_(y)

    def backward(self, grad: Tensor, rows: TaskRows, needs_input: bool) -> tuple[Tensor | None, Callable[[], object]]:
        grad_x = torch.empty_like(grad) if needs_input else None
        grad_by_task = grad.view(rows.num_tasks, -1, *grad.shape[1:])  # (T, B, ...)
        weight_rows = None if self.layer.weight is None else rows.of(self.layer.weight)
        bias_rows = None if self.layer.bias is None else rows.of(self.layer.bias)

        def run() -> None:
            if weight_rows is not None:
                normalised = (self.x - self.mean) * self.rstd
                torch.sum((grad * normalised).view_as(grad_by_task), 1, out=weight_rows)
            if bias_rows is not None:
                torch.sum(grad_by_task, 1, out=bias_rows)
            if grad_x is not None:
                gradient = torch.ops.aten.native_layer_norm_backward(
                    grad, self.x, self.layer.normalized_shape, self.mean, self.rstd,
                    self.weight, self.bias, [True, False, False],
                )[0]  # fmt: skip
                grad_x.copy_(gradient)  # it has no variant that fills a buffer with this alone

        return grad_x, run


STEPS: dict[type[nn.Module], type[Step]] = {
    nn.Linear: _LinearStep,
    nn.ReLU: _ReLUStep,
    nn.LayerNorm: _LayerNormStep,
}


def register_step(kind: type[nn.Module], step: type[Step]) -> None:
    """Teach `Chain` a kind of layer."""
    STEPS[kind] = step


class Chain:
    """An `nn.Sequential` without autograd. The parameters must stay where they are in memory: change them in place.

    It computes in PyTorch's inference mode, where an operation costs less: to change an output in place, copy it.

    Args:
        layers: layers of the kinds in `STEPS`; the parameters of each are its own.

    Attributes:
        layers: the layers.
        runs: how often `forward` has been called.

    Raises:
        UnsupportedLayerError: names the first layer that cannot be treated.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        seen: set[nn.Module] = set()
        for index, layer in enumerate(layers):
            # Exact types: a subclass may compute something else with the same parameters.
            if type(layer) not in STEPS or "forward" in vars(layer) or layer in seen:
                kinds = ", ".join(kind.__name__ for kind in STEPS)
                raise UnsupportedLayerError(
                    f"layer '{index}' ({type(layer).__name__}) cannot run without autograd; "
                    f"supported, once each: {kinds}"
                )
            seen.add(layer)
        self.layers = layers
        self._hooks = [hooks for layer in layers.modules() for hooks in hooks_of(layer)]
        self._by_shape: dict[tuple[int, ...], _Run] = {}  # of the input
        self._last: _Run | None = None
        self.runs = 0

    @property
    def hooked(self) -> bool:
        """Whether a layer has been given a hook, which this would pass over."""
        return any(self._hooks)

    @inference
    def forward(self, x: Tensor) -> Tensor:
        """What the chain makes of `x` (N, ...); valid until the next call."""
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
        """Go back through the last `forward`, as often as need be.

        Args:
            slope: the gradient of its output.
            rows: where to put the gradients.
            weights: one factor for each of T equal parts of the rows of `slope`. Default: 1.

        Raises:
            RuntimeError: there was no `forward`.
        """
        if self._last is None:
            raise RuntimeError("nothing to go back through: call `forward` first")
        self._last.backward(slope, rows, weights)


class _Run:
    """A chain for one shape of input."""

    def __init__(self, layers: nn.Sequential, like: Tensor) -> None:
        self.x = torch.empty_like(like, memory_format=torch.contiguous_format)
        self.steps: list[Step] = []
        y = self.x
        for layer in layers:
            self.steps.append(STEPS[type(layer)](layer, y))
            y = self.steps[-1].y
        self.y = y
        self._ways_back: dict[TaskRows, tuple[Tensor, list[Callable[[], object]]]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.x.copy_(x.detach())
        for step in self.steps:
            step.forward()
        return self.y

    def backward(self, slope: Tensor, rows: TaskRows, weights: Sequence[float] | None) -> None:
        if rows not in self._ways_back:
            self._ways_back[rows] = self._way_back(rows)
        buffer, calls = self._ways_back[rows]
        if weights is None or all(weight == 1 for weight in weights):
            buffer.copy_(slope.detach())
        else:
            parts = (len(weights), len(slope) // len(weights), *slope.shape[1:])
            factors = slope.new_tensor(weights).view(-1, *(1,) * slope.ndim)
            torch.mul(slope.detach().view(parts), factors, out=buffer.view(parts))
        for call in calls:
            call()

    def _way_back(self, rows: TaskRows) -> tuple[Tensor, list[Callable[[], object]]]:
        """The buffer of the output's gradient, and what then has to be called."""
        slope = torch.empty_like(self.y)
        gradient: Tensor | None = slope
        calls = []
        for index in reversed(range(len(self.steps))):
            assert gradient is not None  # only the first step may return None
            gradient, call = self.steps[index].backward(gradient, rows, index > 0)
            calls.append(call)
        return slope, calls


class ChainEngine:
    """Per-task gradients of an `nn.Sequential` from the gradients of its output, by the arithmetic alone.

        values = engine.forward(inputs)  # (T * B, ...), task 0's rows first
        gradients = engine.backward(slope, losses)  # slope: d losses[t] / d values, in the rows of task t

    All parameters are shared ones. `TaskMajorEngine` gives the same rows for any network and loss, and is what this is
    tested against.

    Args:
        layers: see `Chain`.
        num_tasks: T.
        last_shared_layer: see `TaskMajorEngine`.
        group: see `TaskMajorEngine`.

    Raises:
        UnsupportedLayerError: as `Chain`.
        ValueError: `num_tasks` is below 1, or there is no parameter.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        num_tasks: int,
        last_shared_layer: nn.Module | Tensor | None = None,
        *,
        group: Group = "world",
    ) -> None:
        if num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}; it must be at least 1")
        self.layout = ParameterLayout(layers.parameters())
        self.chain = Chain(layers)
        self._ranks = Ranks(group)
        self._rows = TaskRows(self.layout, num_tasks)
        self._sum = TaskRows(self.layout, 1)
        self._last_layer = last_layer_columns(self.layout, last_shared_layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """The output for task-major `inputs` (T * B, ...); valid until the next call.

        Raises:
            ValueError: the rows do not divide into T tasks.
        """
        if inputs.shape[0] % self._rows.num_tasks:
            raise ValueError(f"got {inputs.shape[0]} rows, which do not divide into {self._rows.num_tasks} tasks")
        return self.chain.forward(inputs)

    def backward(self, slope: Tensor, losses: Tensor | None = None) -> TaskGradients:
        """The gradients of T losses of the last `forward`'s output.

        They are computed when they are asked for, which has to be before the next `forward` and before a parameter
        changes. The rows are in a buffer that the next gradients overwrite. A method that combines them without a look
        at them, as equal weights do, never needs the rows: then the combination alone is computed.

        Args:
            slope: of the output's shape; the rows of task t hold the gradient of loss t. To be left alone until the
                gradients have been computed.
            losses: the losses (T,) themselves, which the result carries. Default: it carries none.

        Raises:
            RuntimeError: there was no `forward`.
        """
        if self.chain.runs == 0:
            raise RuntimeError("nothing to go back through: call `forward` first")
        if losses is not None and self._ranks.count() > 1:
            losses = self._ranks.mean_(losses.clone())
        gradients = _ChainGradients(self.chain, slope, self._rows, self._sum, self._last_layer, losses, self._ranks)
        if self._ranks.count() > 1:  # now, on every process: later one might ask for what another doesn't
            _ = gradients.jacobian
        return gradients

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """An engine of the copied layers, with buffers of its own."""
        twin = type(self)(copy.deepcopy(self.chain.layers, memo), self._rows.num_tasks)
        twin._ranks, twin._last_layer = self._ranks, self._last_layer
        return twin


class _ChainGradients(TaskGradients):
    """Gradients that are computed when they are asked for; see `ChainEngine.backward`."""

    checked_when_combined = True

    def __init__(
        self,
        chain: Chain,
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
            RuntimeError: the chain has gone forward again before they were asked for.
        """
        if not self._known:
            self._go_back(self._rows)
            self._known = True
        return self._jacobian

    def check_finite(self) -> None:
        """See `TaskGradients.check_finite`."""
        super().check_finite()
        self._checked = True

    def combine(self, coefficients: Tensor, vector: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """As `TaskGradients.combine`; where nobody has asked for the rows, without them.

        Raises:
            NonFiniteGradientError: the combination holds NaN or infinity, or rows that have been asked for do.
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
