"""Per-task gradients of task-major batches: one forward and one backward pass for all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtrl.gradients.core import Losses, ParameterLayout, TaskGradients
from mtrl.gradients.rules import RULES, Scratch, TaskRows, fusible


class UnsupportedLayerError(ValueError):
    """A module holds a layer whose per-task gradient `TaskMajorEngine` has no rule for."""


class _Recorded(torch.autograd.Function):
    """Runs a layer by its rule, so that the backward pass fills the rows instead of the parameters' `.grad`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, layer: nn.Module, rows: TaskRows, scratch: Scratch) -> Tensor:
        # `parameter` is unused: it makes the output require a gradient when the layer's input does not.
        chain = scratch if isinstance(layer, nn.Sequential) else None
        y, saved = RULES[type(layer)].forward(layer, x, chain)
        ctx.save_for_backward(*saved)
        ctx.layer, ctx.rows, ctx.scratch = layer, rows, chain
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rule = RULES[type(ctx.layer)]
        needs_input = ctx.needs_input_grad[0]
        gradient = rule.backward(ctx.layer, ctx.saved_tensors, grad, ctx.rows, ctx.scratch, needs_input)
        return gradient, None, None, None, None


class TaskMajorEngine:
    """Per-task gradients of a module by one forward and one backward pass over task-major batches.

    The leading dimension of every layer's input is T * B (or anything else that divides by T), task 0's rows first,
    and loss `t` must depend on task `t`'s rows alone: so no layer may mix rows, as batch normalisation does. Layers
    with parameters must be `nn.Linear`, `nn.LayerNorm`, `nn.Embedding` or `nn.Conv2d`.
    The Jacobian is one buffer that the next `backward` overwrites.

    Args:
        module: its trainable parameters are the shared ones.
        num_tasks: T.
        last_shared_layer: the layer on whose weight norm-balancing methods measure. Default: the module's last layer
            with a weight matrix.

    Raises:
        UnsupportedLayerError: names the first layer that has no rule.
    """

    def __init__(self, module: nn.Module, num_tasks: int, last_shared_layer: nn.Module | None = None) -> None:
        self._layers = dict(_recorded_layers(module))
        self.layout = ParameterLayout(p for p in module.parameters() if p.requires_grad)
        self._rows = TaskRows(self.layout, num_tasks)
        self._scratch = Scratch()
        candidates = self.layout.parameters if last_shared_layer is None else tuple(last_shared_layer.parameters())
        weights = [parameter for parameter in candidates if parameter.ndim >= 2]
        self._last_layer = self.layout.columns(weights[-1]) if weights else slice(None)
        self._recorded = False

    @contextmanager
    def record(self) -> Iterator[None]:
        """Inside, the module's layers run by their per-task rules; outside they are what they were."""
        self._rows.start()
        self._scratch.start()
        for name, layer in self._layers.items():
            layer.__dict__["forward"] = partial(self._run, name, layer)
        try:
            yield
        finally:
            for layer in self._layers.values():
                del layer.__dict__["forward"]

    def _run(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        if x.shape[0] % self._rows.num_tasks:
            raise ValueError(
                f"layer '{name}' got {x.shape[0]} rows, which do not divide into {self._rows.num_tasks} tasks"
            )
        self._recorded = True
        parameter = next(parameter for parameter in layer.parameters() if parameter.requires_grad)
        y: Tensor = _Recorded.apply(x, parameter, layer, self._rows, self._scratch)  # type: ignore[no-untyped-call]
        return y

    def backward(self, losses: Losses) -> TaskGradients:
        """See `GradientEngine.backward`.

        Raises:
            ValueError: there are not T losses.
            RuntimeError: no forward pass ran inside `record()`.
        """
        if len(losses) != self._rows.num_tasks:
            raise ValueError(f"got {len(losses)} losses for {self._rows.num_tasks} tasks")
        if not self._recorded:
            raise RuntimeError("nothing was recorded: run the forward pass inside `with engine.record():`")
        vector = losses if isinstance(losses, Tensor) else torch.stack(list(losses))
        torch.autograd.backward(vector, torch.ones_like(vector))
        self._recorded = False
        self._rows.finish()
        return TaskGradients(self._rows.jacobian, self._last_layer)


def _recorded_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers that run by a rule: the outermost fusible ones that hold trainable parameters."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return
    if fusible(module):
        yield name, module
        return
    rule = RULES.get(type(module))
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        if rule is not None and rule.unsupported(module) is None:
            yield name, module
            return
        supported = ", ".join(kind.__name__ for kind in RULES if kind not in (nn.ReLU, nn.Sequential))
        reason = "" if rule is None else f": {rule.unsupported(module)}"
        raise UnsupportedLayerError(
            f"layer '{name}' ({type(module).__name__}) has no per-task gradient rule{reason}; supported: {supported}"
        )
    for child_name, child in module.named_children():
        yield from _recorded_layers(child, f"{name}.{child_name}" if name else child_name)
