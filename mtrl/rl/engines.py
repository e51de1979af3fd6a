"""Which engine computes the task gradients of a network: the fastest one that gives the right rows."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mtrl.gradients import AutogradEngine, ChainEngine, TaskMajorEngine, UnsupportedLayerError
from mtrl.rl.networks import SharedQNetwork

TOLERANCE = 1e-3  # largest difference of two ways to the same rows, as a share of the largest number in them

Engine = TaskMajorEngine | AutogradEngine


def chain_of(network: nn.Module, num_tasks: int) -> ChainEngine | None:
    """The engine that works without autograd; None if the network is no chain of layers that it knows."""
    if type(network) is not SharedQNetwork:
        return None
    try:
        return ChainEngine(network.layers, num_tasks, network.last_shared_layer)
    except UnsupportedLayerError:  # an activation other than ReLU
        return None


def engine_of(shared: nn.Module, num_tasks: int, last_shared_layer: nn.Module) -> Engine:
    """The engine that takes one backward pass if it knows all layers, and else one that takes T of them."""
    try:
        return TaskMajorEngine(shared, num_tasks, last_shared_layer)
    except UnsupportedLayerError:
        return AutogradEngine(shared.parameters(), last_shared_layer)


def checked(
    engine: Engine, losses: Callable[[], Tensor], network: nn.Module, shared: nn.Module, last_shared_layer: nn.Module
) -> Engine:
    """The same engine if it gives the task gradients of this network, and else one that takes T backward passes.

    A features extractor of the user's own may use its layers in ways in which their rows no longer come task after
    task, for instance by exchanging axes. No look at its layers can tell, so both ways are compared once.

    Args:
        engine: the engine to check.
        losses: computes the losses (T,) of one batch.
        network: the whole network, whose `.grad` are None afterwards.
        shared: the part of it that the tasks share.
        last_shared_layer: its last shared layer.
    """
    if isinstance(engine, AutogradEngine):
        return engine
    by_autograd = AutogradEngine(shared.parameters(), last_shared_layer)
    expected = by_autograd.gradients(losses())[0].jacobian
    try:
        with engine.record():
            recorded = losses()
        rows = engine.backward(recorded).jacobian
        agree = bool((rows - expected).abs().max() <= TOLERANCE * expected.abs().max())
    except (RuntimeError, ValueError):  # layers got rows that do not divide, or weights are used without their layer
        agree = False
    for parameter in network.parameters():
        parameter.grad = None
    return engine if agree else by_autograd
