"""Hugging Face Accelerate on one process: the balancer takes the place of `accelerator.backward`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.outside.reference import Heads, backward_by_hand, batch, eager, every_balancer, every_engine, shared_of_heads

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    accelerate: Any = pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")  # of Accelerate's own
STEPS = 4


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    yield
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def train(name: str, low_memory: bool, **kwargs: Any) -> Heads:
    """Some steps in the way of Accelerate's own examples."""
    accelerator = accelerate.Accelerator(cpu=True, **kwargs)
    model = Heads()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    loader = torch.utils.data.DataLoader([batch(step) for step in range(STEPS)], batch_size=None)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    balancer = eager(name)
    for x in loader:
        with accelerator.accumulate(prepared):
            losses = [loss / accelerator.gradient_accumulation_steps for loss in prepared(x)]
            balancer.backward(losses, accelerator.unwrap_model(prepared).encoder.parameters(), low_memory=low_memory)
            optimizer.step()
            optimizer.zero_grad()
    return model


def by_hand(name: str, accumulate: int = 1) -> Heads:
    """The plain loop."""
    model, balancer = Heads(), eager(name)
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    for step in range(STEPS):
        losses = [loss / accumulate for loss in model(batch(step))]
        backward_by_hand(balancer, losses, shared_of_heads(model), model.heads.parameters())
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model


def assert_same_weights(model: Heads, twin: Heads) -> None:
    for actual, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


@every_balancer
@every_engine
def test_a_prepared_model_is_trained_as_in_the_plain_loop(name: str, low_memory: bool) -> None:
    assert_same_weights(train(name, low_memory), by_hand(name))


@pytest.mark.parametrize("name", ["equal", "gradnorm", "rgb"])
@every_engine
def test_accumulation_by_accelerate(name: str, low_memory: bool) -> None:
    assert_same_weights(train(name, low_memory, gradient_accumulation_steps=2), by_hand(name, 2))


@every_engine
def test_mixed_precision_of_accelerate(low_memory: bool) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = Heads().float()
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.02))
    balancer = eager("rgb")
    x = batch(0).float()
    first = sum(loss.item() for loss in prepared(x))
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses: list[Tensor] = list(prepared(x))
        balancer.backward(losses, model.encoder.parameters(), low_memory=low_memory)
        assert model.encoder[0].weight.grad is not None
        assert model.encoder[0].weight.grad.dtype == torch.float32
        accelerator.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    assert sum(loss.item() for loss in prepared(x)) < first


def test_the_state_of_a_balancer_is_saved_with_the_rest(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = Heads()
    prepared = accelerator.prepare(model)
    balancer = eager("gradnorm")
    accelerator.register_for_checkpointing(balancer)
    for step in range(STEPS):
        balancer.backward(list(prepared(batch(step))), model.encoder.parameters())
    expected: Tensor = balancer.weights.clone()
    accelerator.save_state(str(tmp_path))
    balancer.reset()
    accelerator.load_state(str(tmp_path))
    torch.testing.assert_close(balancer.weights, expected)
