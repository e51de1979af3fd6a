"""How each kind of layer runs forward and back in a `Chain`, which works without autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.gradients.rows import TaskRows

NARROW = 24
"""Up to this many inputs, the weight gradient of a linear layer is computed as (in, out) and then transposed into its
place, which is up to four times as fast as computing it as (out, in)."""


class Step:
    """One layer of a chain, for a fixed number N of rows; `register_step` takes a subclass.

    The constructor makes `y`, the buffer (N, ...) of the output, and `forward` fills it from `x`. What runs at each
    update should allocate as little as it can.

    Args:
        layer: the layer. Its parameters must stay where they are in memory.
        x: the buffer of the input, (N, ...). It is the `y` of the step before. A step may overwrite it
            only where that step does not read its `y` on the way back.
    """

    y: Tensor

    def __init__(self, layer: Any, x: Tensor) -> None:
        raise NotImplementedError

    def forward(self) -> None:
        """Fill `y`."""
        raise NotImplementedError

    def backward(
        self, grad: Tensor, rows: TaskRows | None, needs_input: bool
    ) -> tuple[Tensor | None, Callable[[], object]]:
        """Prepare the way back through the layer, once for each `rows`. What is returned serves all updates.

        Args:
            grad: the buffer of the gradient of `y`.
            rows: the buffer for each task's gradients of the layer's parameters. None if only the gradient of `x` is
                wanted.
            needs_input: whether the gradient of `x` is wanted.

        Returns:
            The buffer of the gradient of `x`, or None if it is not wanted; and a function that fills this buffer and
            the rows of the layer's parameters, to be called at each update.
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

    def backward(
        self, grad: Tensor, rows: TaskRows | None, needs_input: bool
    ) -> tuple[Tensor | None, Callable[[], object]]:
        grad_x = torch.empty_like(self.x) if needs_input else None
        if rows is None:
            return grad_x, partial(torch.mm, grad, self.weight, out=grad_x)
        x_by_task = self.x.view(rows.num_tasks, -1, self.x.shape[1])  # (T, B, in)
        grad_by_task = grad.view(rows.num_tasks, -1, grad.shape[1])  # (T, B, out)
        weight_rows = rows.of(self.layer.weight)  # (T, out, in)
        bias_rows = None if self.layer.bias is None else rows.of(self.layer.bias)  # (T, out)
        if x_by_task.shape[2] <= NARROW:
            left, right, product = x_by_task.mT, grad_by_task, self.x.new_empty(weight_rows.mT.shape)  # (T, in, out)
        else:
            left, right, product = grad_by_task.mT, x_by_task, weight_rows
        transposed = product.mT

        def run() -> None:
            torch.bmm(left, right, out=product)
            if product is not weight_rows:
                weight_rows.copy_(transposed)
            if bias_rows is not None:
                torch.sum(grad_by_task, 1, out=bias_rows)
            if grad_x is not None:
                torch.mm(grad, self.weight, out=grad_x)

        return grad_x, run


class _ReLUStep(Step):
    def __init__(self, layer: nn.ReLU, x: Tensor) -> None:
        self.y = x  # the output overwrites the input, and the input's gradient overwrites the output's

    def forward(self) -> None:
        self.y.relu_()

    def backward(
        self, grad: Tensor, rows: TaskRows | None, needs_input: bool
    ) -> tuple[Tensor | None, Callable[[], object]]:
        return grad, lambda: torch.ops.aten.threshold_backward.grad_input(grad, self.y, 0, grad_input=grad)


class _LayerNormStep(Step):
    def __init__(self, layer: nn.LayerNorm, x: Tensor) -> None:
        self.layer, self.x, self.y = layer, x, torch.empty_like(x)
        # Without a scale and a shift PyTorch's kernel takes twice as long as with a scale of 1 and a shift of 0.
        self.weight = x.new_ones(layer.normalized_shape) if layer.weight is None else layer.weight.detach()
        self.bias = x.new_zeros(layer.normalized_shape) if layer.bias is None else layer.bias.detach()

    def forward(self) -> None:
        # Copying the result costs less than the variant of this operation that fills a given buffer.
        y, self.mean, self.rstd = torch.native_layer_norm(
            self.x, self.layer.normalized_shape, self.weight, self.bias, self.layer.eps
        )
        self.y.copy_(y)

    def backward(
        self, grad: Tensor, rows: TaskRows | None, needs_input: bool
    ) -> tuple[Tensor | None, Callable[[], object]]:
        grad_x = torch.empty_like(grad) if needs_input else None
        weight_rows = None if rows is None or self.layer.weight is None else rows.of(self.layer.weight)
        bias_rows = None if rows is None or self.layer.bias is None else rows.of(self.layer.bias)
        grad_by_task = grad.view(1 if rows is None else rows.num_tasks, -1, *grad.shape[1:])  # (T, B, ...)

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
                grad_x.copy_(gradient)  # no variant of the operation fills a buffer with this gradient alone

        return grad_x, run


STEPS: dict[type[nn.Module], type[Step]] = {
    nn.Linear: _LinearStep,
    nn.ReLU: _ReLUStep,
    nn.LayerNorm: _LayerNormStep,
}


def register_step(kind: type[nn.Module], step: type[Step]) -> None:
    """Teach `Chain` how layers of the type `kind` run."""
    STEPS[kind] = step
