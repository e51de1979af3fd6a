"""Per-task gradients of task-major batches: one forward and one backward pass for all tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtrl.gradients.autograd import graph_leaves
from mtrl.gradients.processes import Group, Ranks
from mtrl.gradients.rows import Losses, ParameterLayout, TaskGradients, accumulate, without_autocast
from mtrl.gradients.rules import RULES, Scratch, TaskRows, fusible, hooks_of, refusal


class UnsupportedLayerError(ValueError):
    """A module holds a layer whose per-task gradient `TaskMajorEngine` has no rule for."""


class _Recorded(torch.autograd.Function):
    """Runs a layer by its rule, so that the backward pass fills the rows instead of the parameters' `.grad`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: nn.Module, rows: TaskRows, scratch: Scratch) -> Tensor:
        # `anchor` is unused: it makes the output require a gradient when the layer's input does not.
        chain = scratch if isinstance(layer, nn.Sequential) else None
        y, saved = RULES[type(layer)].forward(layer, x, chain)
        if chain is not None and chain.owns(y):  # a last layer that returns its input: the caller may keep it
            y = y.clone()
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
    with parameters must be `nn.Linear`, `nn.LayerNorm`, `nn.Embedding` or `nn.Conv2d`, and their parameters used by
    those layers alone. Where gradients are disabled, layers run as they do outside.
    Under `torch.autocast` they keep their parameters' precision.
    The Jacobian is one buffer that the next `backward` overwrites.

    Args:
        module: its trainable parameters are the shared ones.
        num_tasks: T.
        last_shared_layer: the layer or parameter on which norm-balancing methods measure. Default: the module's last
            trainable matrix, or everything if there is none.
        group: the processes of a data-parallel run, over which each task's row and loss, and the gradients of other
            parameters, are averaged; see `Ranks`. Default `"world"`: the default group, where `torch.distributed` is
            initialised.

    Raises:
        UnsupportedLayerError: names the first layer that has no rule.
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
        if num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}; it must be at least 1")
        self._module = module
        self._ranks = Ranks(group)
        self._find_layers()
        self.layout = ParameterLayout(p for p in module.parameters() if p.requires_grad)
        self._rows = TaskRows(self.layout, num_tasks)
        self._scratch = Scratch()
        self._last_layer = last_layer_columns(self.layout, last_shared_layer)
        self._anchor = torch.empty(0, requires_grad=True)
        self._recorded = False

    def _find_layers(self) -> None:
        # By identity: a layer that is used in two places has two names.
        self._layers = {layer: name for name, layer in reversed(list(_recorded_layers(self._module)))}
        chains = [layer for layer in self._layers if isinstance(layer, nn.Sequential)]
        self._hooks = [hooks for chain in chains for layer in chain.modules() for hooks in hooks_of(layer)]

    @contextmanager
    def record(self) -> Iterator[None]:
        """Inside, the module's layers run by their per-task rules; outside they are what they were."""
        if any(self._hooks):  # one has been registered since
            self._find_layers()
        self._rows.start()
        self._scratch.start()
        self._recorded = False
        layers = self._layers
        for layer, name in layers.items():
            layer.__dict__["forward"] = partial(self._run, name, layer)
        try:
            yield
        finally:
            for layer in layers:
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
        rows, scratch = self._rows, self._scratch
        if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
            x = x.to(rows.jacobian.dtype)
        with without_autocast(x):
            y: Tensor = _Recorded.apply(x, self._anchor, layer, rows, scratch)  # type: ignore[no-untyped-call]
        return y

    def backward(self, losses: Losses) -> TaskGradients:
        """See `GradientEngine.backward`.

        Raises:
            ValueError: there are not T scalar losses.
            RuntimeError: no forward pass ran inside `record()`, or the losses reach a shared parameter on a way that
                was not recorded.
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
        """The backward pass, after which parameters outside the layout have the mean gradient over all processes."""
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


def last_layer_columns(layout: ParameterLayout, last_shared_layer: nn.Module | Tensor | None) -> slice:
    """Where norm-balancing methods measure: the columns of a layer, by default of the last matrix, else all."""
    if last_shared_layer is None:
        matrices = [parameter for parameter in layout.parameters if parameter.ndim >= 2]
        last_shared_layer = matrices[-1] if matrices else None
    return slice(None) if last_shared_layer is None else layout.layer_columns(last_shared_layer)


def _stamp(parameter: Tensor) -> tuple[int, int]:
    """What changes when a backward pass adds to `.grad`."""
    return (0, 0) if parameter.grad is None else (id(parameter.grad), parameter.grad._version)


def _recorded_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers that run by a rule: the outermost fusible ones that hold trainable parameters."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or not module.track_running_stats):
        raise UnsupportedLayerError(f"layer '{name}' ({type(module).__name__}) mixes the rows of different tasks")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return
    if fusible(module):
        yield name, module
        return
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        reason = refusal(module)
        if reason is None:
            yield name, module
            return
        supported = ", ".join(kind.__name__ for kind in RULES if kind not in (nn.ReLU, nn.Sequential))
        raise UnsupportedLayerError(
            f"layer '{name}' ({type(module).__name__}) cannot be treated: {reason}; supported: {supported}"
        )
    for child_name, child in module.named_children():
        yield from _recorded_layers(child, f"{name}.{child_name}" if name else child_name)
