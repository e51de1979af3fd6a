"""`torch.amp.GradScaler`: scaled losses, unscaling, and steps that are skipped."""

import copy

import pytest
import torch
from torch import Tensor

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
    shared_of_heads,
)

SCALE = 1024.0
SCALED = {"rtol": 1e-4, "atol": 1e-4}  # of float32 gradients of about 10


def scaler_of(scale: float = SCALE) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


@pytest.mark.parametrize("form", ["list", "each", "stack"])
@every_balancer
@every_engine
def test_scaled_losses_scale_the_gradients_and_unscale_gives_them_back(form: str, name: str, low_memory: bool) -> None:
    model = Heads().float()
    twin = copy.deepcopy(model)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.05), scaler_of()
    of_twin = torch.optim.SGD(twin.parameters(), 0.05)
    by_hand, balancer = eager(name), eager(name)
    for step in range(2):
        x = batch(step).float()
        # GradNorm's L(0) and AIM's shares are quotients of losses: a common factor changes nothing.
        backward_by_hand(by_hand, list(twin(x)), shared_of_heads(twin), twin.heads.parameters())
        losses = list(model(x))
        scaled = {
            "list": lambda losses=losses: scaler.scale(losses),
            "each": lambda losses=losses: [scaler.scale(loss) for loss in losses],
            "stack": lambda losses=losses: scaler.scale(torch.stack(losses)),
        }[form]()
        balancer.backward(scaled, low_memory=low_memory)
        scaler.unscale_(optimizer)
        assert_same_gradients(model, twin, **SCALED)
        scaler.step(optimizer)
        scaler.update()
        of_twin.step()
        optimizer.zero_grad()
        of_twin.zero_grad()


@pytest.mark.parametrize("name", ["equal", "pcgrad"])
@every_engine
def test_an_overflow_names_the_task_and_a_lower_scale_goes_on(name: str, low_memory: bool) -> None:
    model = Heads().half()
    scaler = scaler_of(2.0**20)
    x = batch().half()
    with pytest.raises(mtrl.NonFiniteGradientError, match="task"):
        eager(name).backward(scaler.scale(list(model(x))), low_memory=low_memory)
    assert all(parameter.grad is None for parameter in model.parameters())
    scaler.update(4.0)
    eager(name).backward(scaler.scale(list(model(x))), low_memory=low_memory)
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)


@every_engine
def test_a_disabled_scaler_changes_nothing(low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    backward_by_hand(eager("rgb"), list(twin(batch())), shared_of_heads(twin), twin.heads.parameters())
    losses: list[Tensor] = scaler.scale(list(model(batch())))
    eager("rgb").backward(losses, low_memory=low_memory)
    assert_same_gradients(model, twin)
    assert len(losses) == TASKS
