"""Several backward passes through one graph that leave no more behind than one pass would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from mtrl.gradients.graph import Edge


class Passes:
    """Backward passes through the graph of one batch.

    Inside `quiet`, two things do not happen once per pass:

    * Hooks on parameters do not run. They belong to the gradient that is added to `.grad`, which comes later.
    * A module that runs again in a backward pass, inside a checkpointed block, changes its buffers (the statistics of
      batch normalisation) in the first pass only. Modules that run for the first time are left alone, but a module that
      another thread runs meanwhile can't be told from one that runs again.
    """

    def __init__(self) -> None:
        self._count = 0
        self._first: dict[nn.Module, int] = {}  # the number of the pass in which a module ran first
        self._before: dict[nn.Module, dict[str, tuple[Tensor, Tensor]]] = {}

    def gradients(
        self, starts: Mapping[Edge, Tensor], inputs: Sequence[Any], *, retain_graph: bool
    ) -> Sequence[Tensor | None]:
        """Take one backward pass, inside `quiet`.

        Args:
            starts: the gradients with which the pass begins, by their places in the graph.
            inputs: the leaves and edges whose gradients are wanted.
            retain_graph: whether the graph can be used again.

        Returns:
            A gradient for each of the inputs; None if nothing arrives there.
        """
        self._count += 1
        if not starts or not inputs:
            return [None] * len(inputs)
        outputs = [GradientEdge(*edge) for edge in starts]
        seeds = list(starts.values())
        return torch.autograd.grad(outputs, inputs, seeds, retain_graph=retain_graph, allow_unused=True)

    @contextmanager
    def quiet(self, leaves: Iterable[Tensor]) -> Iterator[None]:
        """A context for passes to `leaves`."""
        hooks = [leaf._backward_hooks for leaf in leaves if leaf._backward_hooks]
        held = [dict(of_leaf) for of_leaf in hooks]
        handles = [
            register_module_forward_pre_hook(self._note),
            register_module_forward_hook(self._restore, always_call=True),
        ]
        try:
            for of_leaf in hooks:
                of_leaf.clear()
            yield
        finally:
            for of_leaf, before in zip(hooks, held, strict=True):
                of_leaf.update(before)
            for handle in handles:
                handle.remove()

    def _note(self, module: nn.Module, _: Any) -> None:
        if module._buffers and self._first.setdefault(module, self._count) != self._count:
            buffers = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
            self._before[module] = {name: (buffer, buffer.clone()) for name, buffer in buffers.items()}

    def _restore(self, module: nn.Module, _: Any, __: Any) -> None:
        for name, (buffer, value) in self._before.pop(module, {}).items():
            buffer.data.copy_(value)  # the graph's own check for changes in place must not see it
            module._buffers[name] = buffer
