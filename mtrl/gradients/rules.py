"""How each kind of layer fills the rows of the Jacobian during one ordinary backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from mtrl.gradients.rows import ParameterLayout


class TaskRows:
    """Where the backward pass writes: for each parameter the view (T, *shape) of the Jacobian."""

    def __init__(self, layout: ParameterLayout, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self.jacobian = layout.empty(num_tasks)
        views = layout.split(self.jacobian)
        self._views = {id(parameter): view for parameter, view in zip(layout.parameters, views, strict=True)}
        self._written: set[int] = set()

    def start(self) -> None:
        """Forget what the last update wrote."""
        self._written.clear()

    def finish(self) -> None:
        """Zero what no layer wrote."""
        for key, view in self._views.items():
            if key not in self._written:
                view.zero_()

    def of(self, parameter: Tensor) -> Tensor:
        """The rows of one parameter, (T, *shape)."""
        return self._views[id(parameter)]

    def wanted(self, parameter: Tensor | None) -> TypeGuard[Tensor]:
        """Whether a layer's parameter exists and is trained."""
        return id(parameter) in self._views

    # A layer may be used several times in one forward pass: the first use writes, later ones add.

    def add(self, parameter: Tensor, per_task: Tensor) -> None:
        """Add `per_task` (T, *shape)."""
        if self._first(parameter):
            self._views[id(parameter)].copy_(per_task)
        else:
            self._views[id(parameter)].add_(per_task)

    def add_sum(self, parameter: Tensor, per_row: Tensor) -> None:
        """Add the sum of `per_row` (T, B, *shape) over B."""
        if self._first(parameter):
            torch.sum(per_row, 1, out=self._views[id(parameter)])
        else:
            self._views[id(parameter)].add_(per_row.sum(1))

    def add_product(self, parameter: Tensor, left: Tensor, right: Tensor) -> None:
        """Add the batched product `left @ right`, (T, *shape)."""
        self._views[id(parameter)].baddbmm_(left, right, beta=0 if self._first(parameter) else 1)

    def _first(self, parameter: Tensor) -> bool:
        first = id(parameter) not in self._written
        self._written.add(id(parameter))
        return first


class Scratch:
    """Buffers for what stays inside a fused chain, handed out in the same order at every update.

    Reused memory stays in cache; freshly allocated activations cost more than the arithmetic at these sizes.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._owned: set[int] = set()
        self._next = 0

    def start(self) -> None:
        """Hand the buffers out again from the first."""
        self._next = 0

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor of `shape`, of the dtype and device of `like`."""
        index, self._next = self._next, self._next + 1
        if index < len(self._buffers):
            buffer = self._buffers[index]
            if buffer.shape == shape and buffer.dtype == like.dtype and buffer.device == like.device:
                return buffer
            self._owned.discard(id(buffer))
        buffer = torch.empty(shape, dtype=like.dtype, device=like.device)
        self._buffers[index:] = [buffer, *self._buffers[index + 1 :]]
        self._owned.add(id(buffer))
        return buffer

    def owns(self, tensor: Tensor) -> bool:
        """Whether `tensor` came from here, so that it may be overwritten."""
        return id(tensor) in self._owned


Saved = tuple[Tensor, ...]


class LayerRule:
    """How one kind of layer runs, and how its backward pass fills the rows: what `register_rule` takes.

    `forward` returns the output and what `backward` will need. `backward` gets the gradient of the output, writes the
    rows of the layer's parameters and returns the gradient of the input (None when `needs_input` is False). Both may
    put their result into `scratch`, where one is given.

    Attributes:
        saves: how many tensors `forward` saves.
        parameters: names of the layer's own parameters that `backward` writes. A layer that has others (as pruning and
            weight normalisation give it) is refused.
    """

    saves = 1
    parameters: tuple[str, ...] = ("weight", "bias")

    def unsupported(self, layer: Any) -> str | None:
        """Why this particular layer can't be treated, or None."""
        return None

    def saved_by(self, layer: Any) -> int:
        """How many tensors `forward` saves."""
        return self.saves

    def forward(self, layer: Any, x: Tensor, scratch: Scratch | None) -> tuple[Tensor, Saved]:
        """Output of `layer` for `x`, and the tensors that `backward` needs."""
        raise NotImplementedError

    def backward(
        self, layer: Any, saved: Saved, grad: Tensor, rows: TaskRows, scratch: Scratch | None, needs_input: bool
    ) -> Tensor | None:
        """Write the rows of `layer`'s parameters, given the gradient of its output; return its input's gradient."""
        raise NotImplementedError


class _LinearRule(LayerRule):
    def forward(self, layer: nn.Linear, x: Tensor, scratch: Scratch | None) -> tuple[Tensor, Saved]:
        if scratch is None or x.ndim != 2 or layer.bias is None:
            return F.linear(x, layer.weight, layer.bias), (x,)
        y = scratch.take(x, x.shape[0], layer.out_features)
        return torch.addmm(layer.bias, x, layer.weight.t(), out=y), (x,)

    def backward(
        self, layer: nn.Linear, saved: Saved, grad: Tensor, rows: TaskRows, scratch: Scratch | None, needs_input: bool
    ) -> Tensor | None:
        x = saved[0].reshape(rows.num_tasks, -1, layer.in_features)  # (T, B, in)
        per_task = grad.reshape(rows.num_tasks, -1, layer.out_features)  # (T, B, out)
        if rows.wanted(layer.weight):
            rows.add_product(layer.weight, per_task.mT, x)
        if rows.wanted(layer.bias):
            rows.add_sum(layer.bias, per_task)
        if not needs_input:
            return None
        if scratch is None or grad.ndim != 2:
            return grad @ layer.weight
        return torch.mm(grad, layer.weight, out=scratch.take(grad, grad.shape[0], layer.in_features))


class _LayerNormRule(LayerRule):
    saves = 3

    def forward(self, layer: nn.LayerNorm, x: Tensor, scratch: Scratch | None) -> tuple[Tensor, Saved]:
        y, mean, rstd = torch.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
        return y, (x, mean, rstd)

    def backward(
        self,
        layer: nn.LayerNorm,
        saved: Saved,
        grad: Tensor,
        rows: TaskRows,
        scratch: Scratch | None,
        needs_input: bool,
    ) -> Tensor | None:
        x, mean, rstd = saved
        if rows.wanted(layer.weight):
            normalised = (x - mean) * rstd
            rows.add_sum(layer.weight, (grad * normalised).reshape(rows.num_tasks, -1, *layer.normalized_shape))
        if rows.wanted(layer.bias):
            rows.add_sum(layer.bias, grad.reshape(rows.num_tasks, -1, *layer.normalized_shape))
        if not needs_input:
            return None
        gradients: tuple[Tensor, ...] = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), x, layer.normalized_shape, mean, rstd, layer.weight, layer.bias, [True, False, False]
        )
        return gradients[0]


class _EmbeddingRule(LayerRule):
    def unsupported(self, layer: nn.Embedding) -> str | None:
        plain = layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
        return None if plain else "max_norm, scale_grad_by_freq and sparse are not supported"

    def forward(self, layer: nn.Embedding, x: Tensor, scratch: Scratch | None) -> tuple[Tensor, Saved]:
        return F.embedding(x, layer.weight), (x,)

    def backward(
        self,
        layer: nn.Embedding,
        saved: Saved,
        grad: Tensor,
        rows: TaskRows,
        scratch: Scratch | None,
        needs_input: bool,
    ) -> Tensor | None:
        if rows.wanted(layer.weight):
            index = saved[0].reshape(rows.num_tasks, -1)  # (T, B)
            # Row n of task t is row t * num_embeddings + n of one tall table.
            tall = index + layer.num_embeddings * torch.arange(rows.num_tasks, device=index.device)[:, None]
            table = grad.new_zeros(rows.num_tasks * layer.num_embeddings, layer.embedding_dim)
            table.index_add_(0, tall.flatten(), grad.reshape(-1, layer.embedding_dim))
            table = table.view(rows.num_tasks, layer.num_embeddings, layer.embedding_dim)
            if layer.padding_idx is not None:
                table[:, layer.padding_idx] = 0
            rows.add(layer.weight, table)
        return None  # indices have no gradient


class _Conv2dRule(LayerRule):
    def unsupported(self, layer: nn.Conv2d) -> str | None:
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return None if plain else "only zero padding given in pixels is supported"

    def forward(self, layer: nn.Conv2d, x: Tensor, scratch: Scratch | None) -> tuple[Tensor, Saved]:
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups), (x,)

    def backward(
        self, layer: nn.Conv2d, saved: Saved, grad: Tensor, rows: TaskRows, scratch: Scratch | None, needs_input: bool
    ) -> Tensor | None:
        x = saved[0]
        backward = partial(
            torch.ops.aten.convolution_backward,
            weight=layer.weight,
            bias_sizes=None,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            transposed=False,
            output_padding=[0, 0],
            groups=layer.groups,
        )
        if rows.wanted(layer.weight):
            # One convolution per task over its own share of the batch: together the work of one over all of it.
            pairs = zip(grad.chunk(rows.num_tasks), x.chunk(rows.num_tasks), strict=True)
            per_task = [backward(g, part, output_mask=[False, True, False])[1] for g, part in pairs]
            rows.add(layer.weight, torch.stack(per_task))
        if rows.wanted(layer.bias):
            rows.add_sum(layer.bias, grad.sum((2, 3)).view(rows.num_tasks, -1, layer.out_channels))
        if not needs_input:
            return None
        gradient: Tensor = backward(grad, x, output_mask=[True, False, False])[0]
        return gradient


class _ReLURule(LayerRule):
    def forward(self, layer: nn.ReLU, x: Tensor, scratch: Scratch | None) -> tuple[Tensor, Saved]:
        y = x.relu_() if scratch is not None and scratch.owns(x) else x.relu()
        return y, (y,)

    def backward(
        self, layer: nn.ReLU, saved: Saved, grad: Tensor, rows: TaskRows, scratch: Scratch | None, needs_input: bool
    ) -> Tensor | None:
        out = grad if scratch is not None and scratch.owns(grad) else torch.empty_like(grad)
        gradient: Tensor = torch.ops.aten.threshold_backward.grad_input(grad, saved[0], 0, grad_input=out)
        return gradient


class _SequentialRule(LayerRule):
    """A chain of treatable layers runs as one node of the graph, which saves autograd's cost per layer."""

    def unsupported(self, layer: nn.Sequential) -> str | None:
        return None if all(fusible(child) for child in layer) else "it holds layers without a rule"

    def saved_by(self, layer: nn.Sequential) -> int:
        return sum(RULES[type(child)].saved_by(child) for child in layer)

    def forward(self, layer: nn.Sequential, x: Tensor, scratch: Scratch | None) -> tuple[Tensor, Saved]:
        saved: Saved = ()
        last = len(layer) - 1
        for index, child in enumerate(layer):
            # The last output leaves the chain: the caller may keep it, so it is no scratch.
            x, of_child = RULES[type(child)].forward(child, x, scratch if index < last else None)
            saved += of_child
        return x, saved

    def backward(
        self,
        layer: nn.Sequential,
        saved: Saved,
        grad: Tensor,
        rows: TaskRows,
        scratch: Scratch | None,
        needs_input: bool,
    ) -> Tensor | None:
        gradient: Tensor | None = grad
        for index in reversed(range(len(layer))):
            child = layer[index]
            rule = RULES[type(child)]
            split = len(saved) - rule.saved_by(child)
            of_child, saved = saved[split:], saved[:split]
            assert gradient is not None  # only the first child may return None
            of_input = scratch if index > 0 else None
            gradient = rule.backward(child, of_child, gradient, rows, of_input, needs_input or index > 0)
        return gradient


RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: _LinearRule(),
    nn.LayerNorm: _LayerNormRule(),
    nn.Embedding: _EmbeddingRule(),
    nn.Conv2d: _Conv2dRule(),
    nn.ReLU: _ReLURule(),
    nn.Sequential: _SequentialRule(),
}


def register_rule(kind: type[nn.Module], rule: LayerRule) -> None:
    """Teach `TaskMajorEngine` a kind of layer; it then also runs fused inside an `nn.Sequential`."""
    RULES[kind] = rule


def refusal(layer: nn.Module) -> str | None:
    """Why a layer cannot run by a rule, or None if it can."""
    # Exact types: a subclass may compute something else with the same parameters.
    rule = RULES.get(type(layer))
    if rule is None:
        return "it has no per-task gradient rule"
    if "forward" in vars(layer):
        return "its forward has been replaced on this instance"
    for name in layer._parameters:
        if name not in rule.parameters:
            return f"its rule knows no parameter '{name}'"
    return rule.unsupported(layer)


def fusible(layer: nn.Module) -> bool:
    """Whether a layer may run inside a fused chain: it has a rule, and no hook would be passed over."""
    return not any(hooks_of(layer)) and refusal(layer) is None


def hooks_of(layer: nn.Module) -> tuple[dict[int, Any], ...]:
    """The hooks of a layer, kind by kind; the same dictionaries for as long as it lives."""
    return layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
