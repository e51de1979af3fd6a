"""Default devices and precisions, and state dicts that load without pickle."""

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.outside.reference import (
    Heads,
    assert_same_gradients,
    backward_by_hand,
    eager,
    every_balancer,
    every_engine,
    losses_of_heads,
    shared_of_heads,
)


@every_balancer
@every_engine
def test_a_balancer_made_under_another_default_device_works(name: str, low_memory: bool) -> None:
    """As where a large model is first made on the meta device: the few numbers of a balancer are on the CPU."""
    with torch.device("meta"):
        balancer = eager(name)
    model = Heads()
    twin = copy.deepcopy(model)
    by_hand = eager(name)
    for step in range(2):
        backward_by_hand(by_hand, losses_of_heads(twin, step), shared_of_heads(twin), twin.heads.parameters())
        balancer.backward(losses_of_heads(model, step), model.encoder.parameters(), low_memory=low_memory)
    assert_same_gradients(model, twin)
    assert all(not buffer.is_meta for buffer in balancer.buffers())


@every_balancer
@every_engine
def test_a_balancer_is_used_under_another_default_device(name: str, low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    backward_by_hand(eager(name), losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
    losses = losses_of_heads(model, 0)
    with torch.device("meta"):
        eager(name).backward(losses, model.encoder.parameters(), low_memory=low_memory)
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@every_balancer
def test_the_default_precision_does_not_matter(name: str, dtype: torch.dtype) -> None:
    found = []
    for default in (torch.float32, dtype):
        model = Heads()
        torch.set_default_dtype(default)
        try:
            balancer = eager(name)
            for step in range(3):
                balancer.backward(list(losses_of_heads(model, step)), model.encoder.parameters())
        finally:
            torch.set_default_dtype(torch.float32)
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for actual, expected in zip(*found, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["NashMTL", "UPGrad", "MGDA", "IMTLG", "AlignedMTL", "ConFIG", "PCGrad", "ExcessMTL"])
def test_the_state_of_torchjds_methods_loads_without_pickle(name: str) -> None:
    pytest.importorskip("torchjd")
    if name == "NashMTL":
        pytest.importorskip("cvxpy")
    check_state(f"torchjd:{name}")


@every_balancer
def test_a_used_balancers_state_loads_without_pickle_and_goes_on_alike(name: str) -> None:
    check_state(name)


@pytest.mark.filterwarnings("ignore")  # of the solvers
def check_state(name: str) -> None:
    """Save after some steps, load with `weights_only=True`, and go on in both."""
    model, balancer = Heads(), eager(name)
    for step in range(3):
        balancer.backward(losses_of_heads(model, step), model.encoder.parameters())
    file = io.BytesIO()
    torch.save(balancer.state_dict(), file)
    file.seek(0)
    twin = eager(name)
    twin.load_state_dict(torch.load(file, weights_only=True))
    found: list[Any] = []
    for of in (balancer, twin):
        model = Heads()
        found.append([of.backward(losses_of_heads(model, step), model.encoder.parameters()) for step in (3, 4)])
    for actual, expected in itertools.zip_longest(*found):
        assert isinstance(actual, Tensor)
        assert torch.equal(actual, expected)


@every_balancer
def test_a_balancer_moves_with_the_model_and_can_be_copied(name: str) -> None:
    model, balancer = Heads(), eager(name)
    balancer.backward(losses_of_heads(model, 0), model.encoder.parameters())
    twin = copy.deepcopy(balancer)
    moved = balancer.to("cpu").double()
    weights = [of.backward(losses_of_heads(Heads(), 1), low_memory=False) for of in (moved, twin)]
    assert torch.equal(*weights)
