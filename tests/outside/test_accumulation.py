"""Gradient accumulation over micro-batches."""

import copy

import pytest
import torch

import mtrl
from tests.outside.reference import (
    TASKS,
    Heads,
    assert_same_gradients,
    backward_by_hand,
    batch,
    eager,
    every_balancer,
    every_engine,
    losses_of_heads,
    shared_of_heads,
)

MICRO = 4


@pytest.mark.parametrize("form", ["list", "stack"])
@every_balancer
@every_engine
def test_calls_for_micro_batches_add_up(form: str, name: str, low_memory: bool) -> None:
    """Each micro-batch is balanced by itself, with losses divided by their number as is usual."""
    model = Heads()
    twin = copy.deepcopy(model)
    by_hand, balancer = eager(name), eager(name)
    for step in range(MICRO):
        losses = [loss / MICRO for loss in losses_of_heads(twin, step)]
        backward_by_hand(by_hand, losses, shared_of_heads(twin), twin.heads.parameters())
        losses = losses_of_heads(model, step)
        divided = [loss / MICRO for loss in losses] if form == "list" else torch.stack(losses) / MICRO
        balancer.backward(divided, low_memory=low_memory)
    assert_same_gradients(model, twin)


@every_balancer
def test_gathered_micro_batches_are_balanced_once(name: str) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    engine = mtrl.AutogradEngine(model.encoder.parameters())
    by_hand, balancer = eager(name), eager(name)
    for _ in range(2):
        x = batch(0, MICRO * 5)
        backward_by_hand(by_hand, list(twin(x)), shared_of_heads(twin), twin.heads.parameters())
        parts = x.chunk(MICRO)
        for part in parts[:-1]:
            engine.gather([loss / MICRO for loss in model(part)])
        balancer.backward([loss / MICRO for loss in model(parts[-1])], engine=engine)
        assert_same_gradients(model, twin)


@every_engine
def test_with_equal_weights_accumulation_is_pytorchs_own(low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    for step in range(MICRO):
        mtrl.EqualWeights(TASKS).backward(torch.stack(losses_of_heads(model, step)) / MICRO, low_memory=low_memory)
        (torch.stack(losses_of_heads(twin, step)).sum() / MICRO).backward()
    assert_same_gradients(model, twin)


@every_engine
def test_a_plain_pass_may_be_mixed_with_balanced_ones(low_memory: bool) -> None:
    """Such as an auxiliary loss that is not balanced."""
    model = Heads()
    twin = copy.deepcopy(model)
    for first in (True, False):
        model.zero_grad()
        twin.zero_grad()
        backward_by_hand(eager("rgb"), losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
        twin.encoder(batch(7)).pow(2).mean().backward()
        if first:
            model.encoder(batch(7)).pow(2).mean().backward()
        eager("rgb").backward(losses_of_heads(model, 0), low_memory=low_memory)
        if not first:
            model.encoder(batch(7)).pow(2).mean().backward()
        assert_same_gradients(model, twin)
