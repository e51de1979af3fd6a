"""Per-task gradients of a chain of layers, without autograd.

At the sizes of reinforcement learning, recording a graph, walking it back and allocating what it holds cost more than
the arithmetic. A chain of layers needs none of it: for a given number of rows, every buffer and every view is made
once, and an update is a fixed list of matrix products into them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from mtrl.gradients.core import ParameterLayout, TaskGradients
from mtrl.gradients.ranks import Group, Ranks
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


class Step:
    """One layer of a chain, for a fixed number of rows N: what `register_step` takes.

    The constructor makes `y`, the buffer (N, ...) of the output. Where gradients are wanted, `prepare_backward` is then
    called once. `forward` fills `y` from `x`; `backward` reads `grad` and fills the rows of the layer's parameters and
    the gradient of `x`. Neither should allocate.

    Args:
        layer: the layer. Its parameters must stay where they are in memory.
        x: the buffer of the input, (N, ...). A step may work in place: nobody else needs it.
    """

    y: Tensor

    def __init__(self, layer: Any, x: Tensor) -> None:
        raise NotImplementedError

    def prepare_backward(self, grad: Tensor, rows: TaskRows, needs_input: bool) -> Tensor | None:
        """Make what `backward` needs.

        Args:
            grad: the buffer of the gradient of `y`.
            rows: where the gradients of parameters go, by task.
            needs_input: whether the gradient of `x` is wanted.

        Returns:
            The buffer of the gradient of `x`; None where it is not wanted.
        """
        raise NotImplementedError

    def forward(self) -> None:
        """Fill `y`."""
        raise NotImplementedError

    def backward(self) -> None:
        """Fill the rows of the parameters, and the gradient of `x`."""
        raise NotImplementedError


class _LinearStep(Step):
    def __init__(self, layer: nn.Linear, x: Tensor) -> None:
        self.layer, self.x = layer, x
        self.weight, self.weight_t = layer.weight.detach(), layer.weight.detach().t()
        self.bias = self.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
        self.y = x.new_empty(len(x), layer.out_features)

    def prepare_backward(self, grad: Tensor, rows: TaskRows, needs_input: bool) -> Tensor | None:
        self.grad, self.grad_x = grad, torch.empty_like(self.x) if needs_input else None
        self.x_by_task = self.x.view(rows.num_tasks, -1, self.x.shape[1])  # (T, B, in)
        self.grad_by_task = grad.view(rows.num_tasks, -1, grad.shape[1])  # (T, B, out)
        self.grad_by_task_t = self.grad_by_task.mT
        self.weight_rows = rows.of(self.layer.weight)  # (T, out, in)
        self.bias_rows = None if self.layer.bias is None else rows.of(self.layer.bias)  # (T, out)
        return self.grad_x

    def forward(self) -> None:
        torch.addmm(self.bias, self.x, self.weight_t, out=self.y)

    def backward(self) -> None:
        torch.bmm(self.grad_by_task_t, self.x_by_task, out=self.weight_rows)
        if self.bias_rows is not None:
            torch.sum(self.grad_by_task, 1, out=self.bias_rows)
        if self.grad_x is not None:
            torch.mm(self.grad, self.weight, out=self.grad_x)


class _ReLUStep(Step):
    def __init__(self, layer: nn.ReLU, x: Tensor) -> None:
        self.y = x  # in place, and so is its gradient

    def prepare_backward(self, grad: Tensor, rows: TaskRows, needs_input: bool) -> Tensor | None:
        self.grad = grad
        return grad

    def forward(self) -> None:
        self.y.relu_()

    def backward(self) -> None:
        torch.ops.aten.threshold_backward.grad_input(self.grad, self.y, 0, grad_input=self.grad)


class _LayerNormStep(Step):
    def __init__(self, layer: nn.LayerNorm, x: Tensor) -> None:
        self.layer, self.x, self.y = layer, x, torch.empty_like(x)
        # PyTorch's kernel takes twice as long without a scale and a shift as with those that change nothing.
        self.weight = x.new_ones(layer.normalized_shape) if layer.weight is None else layer.weight.detach()
        self.bias = x.new_zeros(layer.normalized_shape) if layer.bias is None else layer.bias.detach()

    def prepare_backward(self, grad: Tensor, rows: TaskRows, needs_input: bool) -> Tensor | None:
        self.grad, self.grad_x = grad, torch.empty_like(grad) if needs_input else None
        self.grad_by_task = grad.view(rows.num_tasks, -1, *grad.shape[1:])  # (T, B, ...)
        self.weight_rows = None if self.layer.weight is None else rows.of(self.layer.weight)
        self.bias_rows = None if self.layer.bias is None else rows.of(self.layer.bias)
        return self.grad_x

    def forward(self) -> None:
        # A copy of its result costs less than its variant that fills a buffer.
        y, self.mean, self.rstd = torch.native_layer_norm(
            self.x, self.layer.normalized_shape, self.weight, self.bias, self.layer.eps
        )
        self.y.copy_(y)

    def backward(self) -> None:
        if self.weight_rows is not None:
            normalised = (self.x - self.mean) * self.rstd
            torch.sum((self.grad * normalised).view_as(self.grad_by_task), 1, out=self.weight_rows)
        if self.bias_rows is not None:
            torch.sum(self.grad_by_task, 1, out=self.bias_rows)
        if self.grad_x is not None:
            gradient = torch.ops.aten.native_layer_norm_backward(
                self.grad, self.x, self.layer.normalized_shape, self.mean, self.rstd,
                self.weight, self.bias, [True, False, False],
            )[0]  # fmt: skip
            self.grad_x.copy_(gradient)  # it has no variant that fills a buffer with this alone


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
        rows: where `backward` puts the gradients. Default None: no backward pass.

    Raises:
        UnsupportedLayerError: names the first layer that cannot be treated.
    """

    def __init__(self, layers: nn.Sequential, rows: TaskRows | None = None) -> None:
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
        self._layers, self._rows = layers, rows
        self._hooks = [hooks for layer in layers.modules() for hooks in hooks_of(layer)]
        self._runs: dict[tuple[int, ...], _Run] = {}  # by the input's shape
        self._last: _Run | None = None

    @property
    def hooked(self) -> bool:
        """Whether a layer has been given a hook, which this would pass over."""
        return any(self._hooks)

    @inference
    def forward(self, x: Tensor) -> Tensor:
        """What the chain makes of `x` (N, ...); valid until the next call."""
        run = self._runs.get(x.shape)
        if run is None:
            run = self._runs[x.shape] = _Run(self._layers, x, self._rows)
        self._last = run
        return run.forward(x)

    @inference
    def backward(self, slope: Tensor) -> None:
        """Go back through the last `forward`, of whose output `slope` is the gradient.

        Raises:
            RuntimeError: there was no `forward` since the last call.
        """
        if self._last is None:
            raise RuntimeError("nothing to go back through: call `forward` first")
        self._last.backward(slope)
        self._last = None


class _Run:
    """A chain for one shape of input."""

    def __init__(self, layers: nn.Sequential, like: Tensor, rows: TaskRows | None) -> None:
        self.x = torch.empty_like(like, memory_format=torch.contiguous_format)
        self.steps: list[Step] = []
        y = self.x
        for layer in layers:
            self.steps.append(STEPS[type(layer)](layer, y))
            y = self.steps[-1].y
        self.y = y
        self.slope = torch.empty_like(y)
        gradient: Tensor | None = self.slope
        if rows is not None:
            for index in reversed(range(len(self.steps))):
                assert gradient is not None  # only the first step may return None
                gradient = self.steps[index].prepare_backward(gradient, rows, index > 0)

    def forward(self, x: Tensor) -> Tensor:
        self.x.copy_(x.detach())
        for step in self.steps:
            step.forward()
        return self.y

    def backward(self, slope: Tensor) -> None:
        self.slope.copy_(slope.detach())
        for step in reversed(self.steps):
            step.backward()


class ChainEngine:
    """Per-task gradients of an `nn.Sequential` from the gradients of its output, by the arithmetic alone.

        values = engine.forward(inputs)  # (T * B, ...), task 0's rows first
        gradients = engine.backward(slope, losses)  # slope: d losses[t] / d values, in the rows of task t

    The Jacobian is one buffer that the next `backward` overwrites. All parameters are shared ones. `TaskMajorEngine`
    gives the same rows for any network and loss, and is what this is tested against.

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
        self._ranks = Ranks(group)
        self._rows = TaskRows(self.layout, num_tasks)
        self.chain = Chain(layers, self._rows)
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

        Args:
            slope: of the output's shape; the rows of task t hold the gradient of loss t.
            losses: the losses (T,) themselves, which the result carries. Default: it carries none.

        Raises:
            RuntimeError: there was no `forward` since the last call.
        """
        self.chain.backward(slope)
        jacobian = self._rows.jacobian
        if self._ranks.count() > 1:
            losses = None if losses is None else losses.clone()
            self._ranks.mean_all_([jacobian] if losses is None else [jacobian, losses])
        return TaskGradients(jacobian, self._last_layer, losses=losses, ranks=self._ranks)
