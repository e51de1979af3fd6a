"""Fused, foreach and plain optimizers over balanced gradients, and those that come with hooks or parameter groups."""

import copy
from typing import Any

import pytest
import torch

from tests.outside.reference import (
    TASKS,
    Heads,
    backward_by_hand,
    eager,
    every_balancer,
    every_engine,
    losses_of_heads,
    shared_of_heads,
)

KINDS: dict[str, Any] = {
    "SGD fused": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, fused=True),
    "Adam fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, 0.01, fused=True),
    "Adam foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "Adam plain": lambda p: torch.optim.Adam(p, 0.01, foreach=False),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "Muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], 0.01),
}


def train(kind: str, name: str, low_memory: bool) -> None:
    """Three steps beside a reference with the same optimizer."""
    model = Heads()
    twin = copy.deepcopy(model)
    optimizers = [KINDS[kind](list(of.parameters())) for of in (model, twin)]
    balancer, by_hand = eager(name), eager(name)
    for step in range(3):
        backward_by_hand(by_hand, losses_of_heads(twin, step), shared_of_heads(twin), twin.heads.parameters())
        balancer.backward(losses_of_heads(model, step), model.encoder.parameters(), low_memory=low_memory)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for (key, parameter), of_twin in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, of_twin, rtol=1e-5, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pcgrad", "rgb"])
@every_engine
def test_optimizers_step_as_after_a_plain_pass(kind: str, name: str, low_memory: bool) -> None:
    if kind == "Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    train(kind, name, low_memory)


@every_balancer
@every_engine
def test_adamw_in_its_fused_form(name: str, low_memory: bool) -> None:
    train("AdamW fused", name, low_memory)


@every_engine
def test_parameter_groups_schedules_and_averages_see_nothing_unusual(low_memory: bool) -> None:
    model = Heads()
    optimizer = torch.optim.AdamW(
        [{"params": model.encoder.parameters(), "lr": 0.01}, {"params": model.heads.parameters()}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    balancer = eager("gradnorm", TASKS)
    first = sum(loss.item() for loss in losses_of_heads(model, 0))
    for _ in range(10):
        optimizer.zero_grad()
        balancer.backward(losses_of_heads(model, 0), model.encoder.parameters(), low_memory=low_memory)
        optimizer.step()
        scheduler.step()
        averaged.update_parameters(model)
    assert sum(loss.item() for loss in losses_of_heads(model, 0)) < first
    assert all(parameter.grad is None for parameter in averaged.parameters())
