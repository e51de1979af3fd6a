"""Autocast in bfloat16, and models whose parameters are in half precision."""

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
    check,
    eager,
    every_balancer,
    every_engine,
    shared_of_heads,
)

FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}
BFLOAT16 = {"relative": 0.02}
"""Low-memory mode makes the update in one pass through the weighted sum, which bfloat16 rounds at other places."""


def losses(model: Heads, step: int) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return list(model(batch(step).float()))


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@every_balancer
@every_engine
def test_a_forward_pass_under_autocast(name: str, low_memory: bool, given: bool) -> None:
    """Autocast makes one copy of a weight for all its uses, and the gradients are in the parameters' precision."""
    model = Heads().float()
    check(
        model,
        losses,
        shared_of_heads,
        name,
        low_memory,
        given=given,
        steps=1,
        tolerance=BFLOAT16 if low_memory else FLOAT32,
    )


@pytest.mark.parametrize("name", ["gradnorm", "pcgrad", "rgb"])
@every_engine
def test_a_backward_pass_inside_autocast_is_as_exact_as_outside(name: str, low_memory: bool) -> None:
    found = []
    for inside in (False, True):
        model, balancer = Heads().float(), eager(name)
        for step in range(3):
            model.zero_grad()
            of_step = losses(model, step)
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                balancer.backward(of_step, low_memory=low_memory)
        found.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for outside, within in zip(*found, strict=True):
        assert outside.dtype == torch.float32
        torch.testing.assert_close(within, outside, rtol=1e-6, atol=1e-7)


@every_engine
def test_losses_in_bfloat16_are_balanced_by_their_float32_values(low_memory: bool) -> None:
    model = Heads().float()
    twin = copy.deepcopy(model)
    shared = shared_of_heads(twin)
    backward_by_hand(eager("pcgrad"), [loss.bfloat16() for loss in losses(twin, 0)], shared, twin.heads.parameters())
    eager("pcgrad").backward([loss.bfloat16() for loss in losses(model, 0)], low_memory=low_memory)
    assert_same_gradients(model, twin, **(BFLOAT16 if low_memory else FLOAT32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gradnorm", "pcgrad", "rgb", "aim", "torchjd:UPGrad"])
@every_engine
def test_coefficients_of_a_half_precision_model_are_those_of_its_rows_in_float64(
    name: str, dtype: torch.dtype, low_memory: bool
) -> None:
    """Gramians are made in float32 or better; only the rows themselves are rounded."""
    if name.startswith("torchjd"):
        pytest.importorskip("torchjd")
    model = Heads().to(dtype)
    shared = shared_of_heads(model)
    found = list(model(batch().to(dtype)))
    rows = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)]) for loss in found]
    ).double()
    values = torch.stack([loss.detach() for loss in found]).double()
    last = slice(rows.shape[1] - 8 * 6 - 6, rows.shape[1] - 6)
    expected = eager(name)(mtrl.TaskGradients(rows, last), values).coefficients
    actual = eager(name).backward(found, shared, low_memory=low_memory)
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0.01, atol=0.01)
    assert model.encoder[0].weight.grad is not None
    assert model.encoder[0].weight.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rgb_rotates_in_half_precision(dtype: torch.dtype) -> None:
    """Conflicting gradients turn towards their consensus in any precision."""
    torch.manual_seed(0)
    rows = torch.randn(TASKS, 40, dtype=torch.float64)
    angles = []
    for of in (torch.float64, dtype):
        balancer = mtrl.RGB(TASKS, alpha_steps=20)
        angles.append(balancer(mtrl.TaskGradients(rows.to(of)), torch.ones(TASKS)).diagnostics["angle"].double())
    assert float(angles[0].max()) > 0.05
    torch.testing.assert_close(angles[1], angles[0], rtol=0.05, atol=0.02)
