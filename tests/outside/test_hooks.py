"""Hooks run as in PyTorch's own backward pass.

A hook on a parameter sees the gradient that is about to be added to `.grad`: the balanced one, once per call. A hook on
something inside the graph is a part of every task's gradient: in the default engine it runs once in each of the T
backward passes. Low-memory mode takes its passes in parts and one more for the update; there a hook may run more often,
and one that changes gradients is refused where the update does not agree with the task gradients.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtrl
from tests.outside.reference import (
    CLOSE,
    TASKS,
    Heads,
    assert_same_gradients,
    backward_by_hand,
    batch,
    check,
    eager,
    every_balancer,
    every_engine,
    losses_of_heads,
    right_or_refused,
    shared_of_heads,
)


@every_balancer
@every_engine
def test_a_hook_on_a_parameter_sees_the_balanced_gradient_once(name: str, low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    seen: list[Tensor] = []
    weight, head = model.encoder[0].weight, model.heads[0].weight
    weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    head.register_hook(lambda gradient: seen.append(gradient.clone()))
    backward_by_hand(eager(name), losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
    eager(name).backward(losses_of_heads(model, 0), low_memory=low_memory)
    assert len(seen) == 2
    of_weight, of_head = sorted(seen, key=lambda gradient: -gradient.numel())
    torch.testing.assert_close(of_weight, twin.encoder[0].weight.grad, **CLOSE)
    torch.testing.assert_close(of_head, twin.heads[0].weight.grad, **CLOSE)
    assert_same_gradients(model, twin)


HOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda gradient: gradient * 0.5,
    "clipped": lambda gradient: gradient.clamp(-0.1, 0.1),
    "normalised": lambda gradient: gradient / gradient.norm(),
    "reversed": lambda gradient: -gradient,
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", ["equal", "rgb"])
@every_engine
def test_a_hook_on_a_parameter_changes_the_balanced_gradient_once(kind: str, name: str, low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    backward_by_hand(eager(name), losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
    for parameter, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        parameter.register_hook(HOOKS[kind])
        of_twin.grad = HOOKS[kind](of_twin.grad)
    eager(name).backward(losses_of_heads(model, 0), low_memory=low_memory)
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("kind", HOOKS)
@every_engine
def test_with_equal_weights_hooks_on_parameters_do_what_they_do_in_pytorch(kind: str, low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    for parameter in (*model.parameters(), *twin.parameters()):
        parameter.register_hook(HOOKS[kind])
    torch.stack(losses_of_heads(twin, 0)).sum().backward()
    mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), low_memory=low_memory)
    assert_same_gradients(model, twin)


@every_balancer
@every_engine
def test_a_post_accumulate_hook_runs_once_after_the_gradient_is_there(name: str, low_memory: bool) -> None:
    """As for an optimizer step in the backward pass, or offloading."""
    model = Heads()
    twin = copy.deepcopy(model)
    seen: dict[int, Tensor] = {}

    def note(parameter: Tensor) -> None:
        assert id(parameter) not in seen
        assert parameter.grad is not None
        seen[id(parameter)] = parameter.grad.clone()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(note)
    backward_by_hand(eager(name), losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
    eager(name).backward(losses_of_heads(model, 0), low_memory=low_memory)
    for parameter, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(seen[id(parameter)], of_twin.grad, **CLOSE)


@every_engine
def test_an_optimizer_may_step_in_post_accumulate_hooks(low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    optimizers = {parameter: torch.optim.SGD([parameter], 0.1) for parameter in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for number in range(2):
        backward_by_hand(eager("equal"), losses_of_heads(twin, number), shared_of_heads(twin), twin.heads.parameters())
        optimizer.step()
        optimizer.zero_grad()
        eager("equal").backward(losses_of_heads(model, number), low_memory=low_memory)
    for parameter, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        assert parameter.grad is None
        torch.testing.assert_close(parameter, of_twin, **CLOSE)


# --------------------------------------------------------------------------------------------------- inside the graph


class Hooked(Heads):
    """An encoder whose output, or a layer of which, has a hook."""

    def __init__(self, kind: str, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.kind, self.change = kind, change
        self.calls = 0
        if kind == "module":
            self.encoder[2].register_full_backward_hook(self._of_module)
        elif kind == "module pre-hook":
            self.encoder[2].register_full_backward_pre_hook(lambda _, gradients: (self._of_tensor(gradients[0]),))

    def _of_tensor(self, gradient: Tensor) -> Tensor:
        self.calls += 1
        return self.change(gradient)

    def _of_module(self, _: nn.Module, gradients: Any, __: Any) -> Any:
        return (self._of_tensor(gradients[0]),)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        z = self.encoder(x)
        if self.kind == "tensor":
            z.register_hook(self._of_tensor)
        elif self.kind == "node":
            z.grad_fn.register_prehook(lambda gradients: (self._of_tensor(gradients[0]), *gradients[1:]))
        return tuple(self.losses_of(z))


@pytest.mark.parametrize("change", HOOKS)
@pytest.mark.parametrize("kind", ["tensor", "module", "module pre-hook", "node"])
@pytest.mark.parametrize("name", ["equal", "pcgrad"])
@every_engine
def test_a_hook_inside_the_graph_is_a_part_of_every_tasks_gradient(
    change: str, kind: str, name: str, low_memory: bool
) -> None:
    """Such as reversing gradients for domain adaptation, or clipping them between the steps of a recurrent network."""
    model, twin = Hooked(kind, HOOKS[change]), Hooked(kind, HOOKS[change])
    backward_by_hand(eager(name), losses_of_heads(twin, 0), shared_of_heads(twin), [])
    with right_or_refused("low_memory") if low_memory else nullcontext():
        eager(name).backward(losses_of_heads(model, 0), model.encoder.parameters(), low_memory=low_memory)
        assert_same_gradients(model.encoder, twin.encoder)


@pytest.mark.parametrize("change", ["scaled", "reversed"])
@pytest.mark.parametrize("kind", ["tensor", "module", "module pre-hook", "node"])
@every_engine
def test_with_equal_weights_a_linear_hook_does_what_it_does_in_pytorch(
    change: str, kind: str, low_memory: bool
) -> None:
    model, twin = Hooked(kind, HOOKS[change]), Hooked(kind, HOOKS[change])
    torch.stack(losses_of_heads(twin, 0)).sum().backward()
    with right_or_refused("low_memory") if low_memory else nullcontext():
        mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), low_memory=low_memory)
        assert_same_gradients(model, twin)


@pytest.mark.parametrize("kind", ["tensor", "module", "module pre-hook", "node"])
def test_a_hook_inside_the_graph_runs_once_per_task(kind: str) -> None:
    model = Hooked(kind, lambda gradient: gradient)
    eager("pcgrad").backward(losses_of_heads(model, 0))
    assert model.calls == TASKS


@pytest.mark.parametrize("kind", ["tensor", "node"])
def test_a_hook_that_only_looks_is_no_fault_in_low_memory_mode(kind: str) -> None:
    check(
        Hooked(kind, lambda gradient: gradient),
        losses_of_heads,
        shared_of_heads,
        "rgb",
        low_memory=True,
        plain=lambda model, step: list(model(batch(step))),
    )


@every_engine
def test_a_gradient_reversal_layer_written_as_a_function_is_a_part_of_the_graph(low_memory: bool) -> None:
    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return -0.3 * gradient

    def losses(model: Heads, step: int) -> list[Tensor]:
        z = model.encoder(batch(step))
        reversed_z: Tensor = Reverse.apply(z)  # type: ignore[no-untyped-call]
        return [*model.losses_of(z)[:2], model.losses_of(reversed_z)[2]]

    for name in ("equal", "pcgrad", "gradnorm"):
        check(Heads(), losses, shared_of_heads, name, low_memory, given=False)


# -------------------------------------------------------------------------------------------------------- retain_grad


def test_a_retained_gradient_inside_the_graph_is_that_of_the_sum_of_the_losses() -> None:
    """Low-memory mode goes through the graph once more, so that a multiple remains there."""
    model = Heads()
    z, expected = model.encoder(batch()), model.encoder(batch())
    z.retain_grad()
    expected.retain_grad()
    torch.stack(model.losses_of(expected)).sum().backward()
    model.zero_grad()
    mtrl.EqualWeights(TASKS).backward(model.losses_of(z))
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected.grad, **CLOSE)


@every_engine
def test_a_recorder_hook_of_the_balancer_sees_every_call(low_memory: bool) -> None:
    balancer, calls = mtrl.PCGrad(TASKS), []
    balancer.register_forward_hook(lambda *_: calls.append(1))
    for step in range(3):
        balancer.backward(losses_of_heads(Heads(), step), low_memory=low_memory)
    assert len(calls) == 3
