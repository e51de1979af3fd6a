"""Per-task gradients of task-major batches: one forward and one backward pass for all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from mtrl.gradients.graph import graph_leaves
from mtrl.gradients.layout import ParameterLayout, accumulate
from mtrl.gradients.processes import Group, Ranks
from mtrl.gradients.rows import Losses, TaskGradients, TaskRows, without_autocast
from mtrl.limits import check_number

Saved = tuple[Tensor, ...]


class UnsupportedLayerError(ValueError):
    """A module holds a layer that an engine does not know how to treat; the message names the layer."""


class LayerRule:
    """How one kind of layer runs, and how its backward pass fills the rows; `register_rule` takes an instance.

    Attributes:
        parameters: the names of the layer's own parameters whose rows `backward` writes. A layer with other parameters,
            as pruning or weight normalisation make it, is refused.
    """

    parameters: tuple[str, ...] = ("weight", "bias")

    def unsupported(self, layer: Any) -> str | None:
        """Why this particular layer cannot be treated, or None if it can."""
        return None

    def forward(self, layer: Any, x: Tensor) -> tuple[Tensor, Saved]:
        """The output of `layer` for `x`, and the tensors that `backward` will need."""
        raise NotImplementedError

    def backward(self, layer: Any, saved: Saved, grad: Tensor, rows: TaskRows, needs_input: bool) -> Tensor | None:
        """Write the rows of the layer's parameters, and return the gradient of its input.

        Args:
            layer: the layer.
            saved: the tensors that `forward` saved.
            grad: the gradient of the output.
            rows: where the rows are written.
            needs_input: whether the gradient of the input is wanted; if not, None may be returned.
        """
        raise NotImplementedError


class _LinearRule(LayerRule):
    def forward(self, layer: nn.Linear, x: Tensor) -> tuple[Tensor, Saved]:
        return F.linear(x, layer.weight, layer.bias), (x,)

    def backward(
        self, layer: nn.Linear, saved: Saved, grad: Tensor, rows: TaskRows, needs_input: bool
    ) -> Tensor | None:
        x = saved[0].reshape(rows.num_tasks, -1, layer.in_features)  # (T, B, in)
        per_task = grad.reshape(rows.num_tasks, -1, layer.out_features)  # (T, B, out)
        if rows.wanted(layer.weight):
            rows.add_product(layer.weight, per_task.mT, x)
        if rows.wanted(layer.bias):
            rows.add_sum(layer.bias, per_task)
        return grad @ layer.weight if needs_input else None


class _LayerNormRule(LayerRule):
    def forward(self, layer: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Saved]:
        y, mean, rstd = torch.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
        return y, (x, mean, rstd)

    def backward(
        self, layer: nn.LayerNorm, saved: Saved, grad: Tensor, rows: TaskRows, needs_input: bool
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

    def forward(self, layer: nn.Embedding, x: Tensor) -> tuple[Tensor, Saved]:
        return F.embedding(x, layer.weight), (x,)

    def backward(self, layer: nn.Embedding, saved: Saved, grad: Tensor, rows: TaskRows, needs_input: bool) -> None:
        if not rows.wanted(layer.weight):
            return
        index = saved[0].reshape(rows.num_tasks, -1)  # (T, B)
        # One tall table stands for the tables of all tasks: its row t * num_embeddings + n is row n of task t.
        tall = index + layer.num_embeddings * torch.arange(rows.num_tasks, device=index.device)[:, None]
        table = grad.new_zeros(rows.num_tasks * layer.num_embeddings, layer.embedding_dim)
        table.index_add_(0, tall.flatten(), grad.reshape(-1, layer.embedding_dim))
        table = table.view(rows.num_tasks, layer.num_embeddings, layer.embedding_dim)
        if layer.padding_idx is not None:
            table[:, layer.padding_idx] = 0
        rows.add(layer.weight, table)  # the input holds indices, which have no gradient


class _Conv2dRule(LayerRule):
    def unsupported(self, layer: nn.Conv2d) -> str | None:
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return None if plain else "only zero padding given in pixels is supported"

    def forward(self, layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Saved]:
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups), (x,)

    def backward(
        self, layer: nn.Conv2d, saved: Saved, grad: Tensor, rows: TaskRows, needs_input: bool
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
            # One convolution for each task's share of the batch takes as much work as one for the whole batch.
            pairs = zip(grad.chunk(rows.num_tasks), x.chunk(rows.num_tasks), strict=True)
            per_task = [backward(g, part, output_mask=[False, True, False])[1] for g, part in pairs]
            rows.add(layer.weight, torch.stack(per_task))
        if rows.wanted(layer.bias):
            rows.add_sum(layer.bias, grad.sum((2, 3)).view(rows.num_tasks, -1, layer.out_channels))
        if not needs_input:
            return None
        gradient: Tensor = backward(grad, x, output_mask=[True, False, False])[0]
        return gradient


RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: _LinearRule(),
    nn.LayerNorm: _LayerNormRule(),
    nn.Embedding: _EmbeddingRule(),
    nn.Conv2d: _Conv2dRule(),
}


def register_rule(kind: type[nn.Module], rule: LayerRule) -> None:
    """Teach `TaskMajorEngine` how to treat layers of the type `kind`."""
    RULES[kind] = rule


class _Recorded(torch.autograd.Function):
    """Runs a layer by its rule, so that the backward pass fills the rows instead of the parameters' `.grad`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: nn.Module, rows: TaskRows) -> Tensor:
        # `anchor` takes no part in the computation. It requires a gradient, so that the output does, too, even if the
        # layer's input does not.
        y, saved = RULES[type(layer)].forward(layer, x)
        ctx.save_for_backward(*saved)
        ctx.layer, ctx.rows = layer, rows
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rule = RULES[type(ctx.layer)]
        with without_autocast(grad):
            gradient = rule.backward(ctx.layer, ctx.saved_tensors, grad, ctx.rows, ctx.needs_input_grad[0])
        return gradient, None, None, None


class TaskMajorEngine:
    """Per-task gradients of a module by one forward and one backward pass over task-major batches.

    The leading dimension of every layer's input is T * B (or another multiple of T), with the rows of task 0 first, and
    loss `t` must depend on the rows of task `t` alone. So no layer may mix rows, as batch normalisation does. Layers
    with parameters must be of a type in `RULES`: `nn.Linear`, `nn.LayerNorm`, `nn.Embedding`, `nn.Conv2d` and what
    `register_rule` adds; their parameters must be used by those layers alone. Where gradients are disabled, layers run
    as they do outside. Under `torch.autocast` they keep the precision of their parameters. The Jacobian is one buffer,
    which the next `backward` overwrites.

    Args:
        module: a module; its trainable parameters are the shared ones.
        num_tasks: T.
        last_shared_layer: the layer or parameter on which norm-balancing methods measure. Default: the module's last
            trainable matrix, or all parameters if there is no matrix.
        group: the processes of a data-parallel run. Each task's row and loss, and the gradients of other parameters,
            are averaged over them; see `Ranks`. Default `"world"`: the default group, if `torch.distributed` is
            initialised.

    Raises:
        UnsupportedLayerError: there is a layer without a rule; the message names the first one.
        ValueError: `num_tasks` is below 1, or nothing is trainable.
    """

    def __init__(
        self,
        module: nn.Module,
        num_tasks: int,
        last_shared_layer: nn.Module | Tensor | None = None,
        *,
        group: Group = "world",
    ) -> None:
        check_number("num_tasks", num_tasks, least=1, whole=True)
        self._module = module
        self._ranks = Ranks(group)
        # A layer that is used in two places has two names and counts once, under the first.
        self._layers = {layer: name for name, layer in reversed(list(_layers_with_rules(module)))}
        self.layout = ParameterLayout(p for p in module.parameters() if p.requires_grad)
        self._rows = TaskRows(self.layout, num_tasks)
        self._last_layer = self.layout.slice_of_last(last_shared_layer)
        self._anchor = torch.empty(0, requires_grad=True)
        self._recorded = False

    @contextmanager
    def record(self) -> Iterator[None]:
        """Inside this context the module's layers run by their per-task rules."""
        self._rows.start()
        self._recorded = False
        for layer, name in self._layers.items():
            layer.__dict__["forward"] = partial(self._run, name, layer)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.__dict__["forward"]

    def _run(self, name: str, layer: nn.Module, input: Tensor) -> Tensor:
        x = input
        if not torch.is_grad_enabled():
            plain: Tensor = type(layer).forward(layer, x)
            return plain
        if x.shape[0] % self._rows.num_tasks:
            raise ValueError(
                f"layer '{name}' got {x.shape[0]} rows, which do not divide into {self._rows.num_tasks} tasks"
            )
        self._recorded = True
        if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
            x = x.to(self._rows.jacobian.dtype)
        with without_autocast(x):
            y: Tensor = _Recorded.apply(x, self._anchor, layer, self._rows)  # type: ignore[no-untyped-call]
        return y

    def backward(self, losses: Losses) -> TaskGradients:
        """See `GradientEngine.backward`.

        Raises:
            ValueError: there are not T scalar losses.
            RuntimeError: no forward pass ran inside `record()`, or the losses depend on a shared parameter in a way
                that was not recorded.
        """
        if len(losses) != self._rows.num_tasks:
            raise ValueError(f"got {len(losses)} losses for {self._rows.num_tasks} tasks")
        if not self._recorded:
            raise RuntimeError("nothing was recorded: run the forward pass inside `with engine.record():`")
        vector = losses if isinstance(losses, Tensor) else torch.stack(list(losses))
        if vector.numel() != len(losses):
            raise ValueError(f"the losses have shape {tuple(vector.shape)}; one scalar per task is needed")
        before = [_stamp(parameter) for parameter in self.layout.parameters]
        if self._ranks.count() == 1:
            torch.autograd.backward(vector, torch.ones_like(vector))
        else:
            self._backward_of_own_share(vector)
        for parameter, stamp in zip(self.layout.parameters, before, strict=True):
            if _stamp(parameter) != stamp:
                name = next(name for name, known in self._module.named_parameters() if known is parameter)
                raise RuntimeError(
                    f"the losses reach parameter '{name}' outside a recorded layer, so its rows would be incomplete: "
                    "run every forward pass inside `with engine.record():` and use parameters only through their layer"
                )
        self._recorded = False
        self._rows.finish()
        jacobian, values = self._rows.jacobian, vector.detach().flatten()
        if self._ranks.count() > 1:
            values = values.clone()
            self._ranks.mean_all_((jacobian, values))
        return TaskGradients(jacobian, self._last_layer, losses=values, ranks=self._ranks)

    def _backward_of_own_share(self, losses: Tensor) -> None:
        """Go back from this process's losses, and average the gradients of parameters outside the layout."""
        private = [leaf for leaf in graph_leaves(losses) if leaf is not self._anchor and leaf not in self.layout]
        before = [leaf.grad for leaf in private]
        for leaf in private:
            leaf.grad = None
        torch.autograd.backward(losses, torch.ones_like(losses))
        pairs = [(leaf, leaf.grad) for leaf in private if leaf.grad is not None]
        for leaf, gradient in zip(private, before, strict=True):
            leaf.grad = gradient
        self._ranks.mean_all_([gradient for _, gradient in pairs])
        accumulate(pairs)


def _stamp(parameter: Tensor) -> tuple[int, int]:
    """A pair of numbers that changes when a backward pass adds to the parameter's `.grad`."""
    return (0, 0) if parameter.grad is None else (id(parameter.grad), parameter.grad._version)


def _layers_with_rules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers with trainable parameters of their own, by name; raises `UnsupportedLayerError` as the engine does."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or not module.track_running_stats):
        raise UnsupportedLayerError(f"layer '{name}' ({type(module).__name__}) mixes the rows of different tasks")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        reason = _refusal(module)
        if reason is not None:
            supported = ", ".join(kind.__name__ for kind in RULES)
            raise UnsupportedLayerError(
                f"layer '{name}' ({type(module).__name__}) cannot be treated: {reason}; supported: {supported}"
            )
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _layers_with_rules(child, f"{name}.{child_name}" if name else child_name)


def _refusal(layer: nn.Module) -> str | None:
    """Why a layer cannot run by a rule, or None if it can."""
    rule = RULES.get(type(layer))  # the type must match exactly: a subclass may compute something else
    if rule is None:
        return "it has no per-task gradient rule"
    if "forward" in vars(layer):
        return "its forward has been replaced on this instance"
    for name in layer._parameters:
        if name not in rule.parameters:
            return f"its rule knows no parameter '{name}'"
    return rule.unsupported(layer)
