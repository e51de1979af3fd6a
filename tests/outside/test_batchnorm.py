"""Batch normalisation: its statistics change in the forward pass only, and once."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtrl
from tests.outside.reference import TASKS, Heads, batch, check, every_balancer, every_engine, shared_of_heads


def normalised(affine: bool = True, **kwargs: Any) -> Heads:
    torch.manual_seed(0)
    return Heads(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, affine=affine, **kwargs), nn.ReLU(), nn.Linear(8, 6)))


def losses(model: Heads, step: int) -> list[Tensor]:
    return list(model(batch(step)))


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@every_balancer
@every_engine
def test_batch_normalisation_in_training(name: str, low_memory: bool, given: bool) -> None:
    check(normalised(), losses, shared_of_heads, name, low_memory, given=given)


@pytest.mark.parametrize("mode", ["eval", "momentum", "untracked", "frozen"])
@every_engine
def test_batch_normalisation_in_other_modes(mode: str, low_memory: bool) -> None:
    model = {
        "eval": lambda: normalised().eval(),
        "momentum": lambda: normalised(momentum=None),
        "untracked": lambda: normalised(track_running_stats=False),
        "frozen": normalised,
    }[mode]()
    if mode == "frozen":
        model.encoder[1].requires_grad_(False).eval()
    check(
        model,
        losses,
        lambda model: [parameter for parameter in model.encoder.parameters() if parameter.requires_grad],
        "rgb",
        low_memory,
    )


@every_balancer
@every_engine
def test_the_statistics_are_updated_once(name: str, low_memory: bool) -> None:
    model = normalised()
    twin = copy.deepcopy(model)
    torch.stack(losses(twin, 0)).sum().backward()
    mtrl.make_balancer(name, TASKS).backward(losses(model, 0), model.encoder.parameters(), low_memory=low_memory)
    assert int(model.encoder[1].num_batches_tracked) == 1
    for actual, expected in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(actual, expected)


@every_engine
def test_other_normalisations(low_memory: bool) -> None:
    for layer in (nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8), nn.InstanceNorm1d(1, affine=True)):
        torch.manual_seed(0)
        middle = (
            nn.Sequential(nn.Unflatten(1, (1, 8)), layer, nn.Flatten())
            if layer.__class__ is nn.InstanceNorm1d
            else layer
        )
        model = Heads(nn.Sequential(nn.Linear(3, 8), middle, nn.Linear(8, 6)))
        check(model, losses, shared_of_heads, "pcgrad", low_memory, given=False)
