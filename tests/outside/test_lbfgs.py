"""LBFGS: a closure is called several times per step and must give the loss with gradients of the same function."""

import copy

import pytest
import torch
from torch import Tensor

from tests.outside.reference import (
    Heads,
    backward_by_hand,
    eager,
    every_balancer,
    every_engine,
    losses_of_heads,
    shared_of_heads,
)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@every_balancer
@every_engine
def test_a_closure_with_balanced_gradients(name: str, low_memory: bool, line_search: str | None) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    balancer, by_hand = eager(name), eager(name)
    calls = [0, 0]
    optimizers = [
        torch.optim.LBFGS(of.parameters(), 0.01, max_iter=3, line_search_fn=line_search) for of in (model, twin)
    ]

    def closure() -> Tensor:
        calls[0] += 1
        optimizers[0].zero_grad()
        losses = losses_of_heads(model, 0)
        balancer.backward(losses, model.encoder.parameters(), low_memory=low_memory)
        return torch.stack(losses).sum()

    def closure_by_hand() -> Tensor:
        calls[1] += 1
        optimizers[1].zero_grad()
        losses = losses_of_heads(twin, 0)
        backward_by_hand(by_hand, losses, shared_of_heads(twin), twin.heads.parameters())
        return torch.stack(losses).sum()

    for _ in range(2):
        before = list(calls)
        actual, expected = optimizers[0].step(closure), optimizers[1].step(closure_by_hand)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
        assert calls[0] - before[0] == calls[1] - before[1] > 1
    for parameter, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, of_twin, rtol=1e-5, atol=1e-6)


@every_engine
def test_losses_go_down_with_equal_weights(low_memory: bool) -> None:
    model, balancer = Heads(), eager("equal")
    optimizer = torch.optim.LBFGS(model.parameters(), 0.5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = losses_of_heads(model, 0)
        balancer.backward(losses, low_memory=low_memory)
        return torch.stack(losses).sum()

    first = closure().item()
    for _ in range(3):
        optimizer.step(closure)
    assert closure().item() < 0.5 * first
