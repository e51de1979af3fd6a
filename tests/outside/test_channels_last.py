"""Convolutions in the `channels_last` memory format, with optimizers that go through memory in order."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtrl
from tests.outside.reference import TASKS, Heads, check, every_balancer, every_engine, shared_of_heads


class Images(Heads):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(
                nn.Conv2d(3, 4, 3, bias=False),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, 6, 2),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
        )


def images(step: int) -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def losses(model: Heads, step: int) -> list[Tensor]:
    return list(model(images(step).to(memory_format=torch.channels_last)))


def channels_last() -> Images:
    return Images().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@every_balancer
@every_engine
def test_gradients_of_convolutions(name: str, low_memory: bool, given: bool) -> None:
    check(channels_last(), losses, shared_of_heads, name, low_memory, given=given)


@pytest.mark.parametrize("name", ["equal", "pcgrad"])
@every_engine
def test_a_gradient_lies_in_memory_as_its_parameter(name: str, low_memory: bool) -> None:
    model = channels_last()
    mtrl.make_balancer(name, TASKS).backward(losses(model, 0), low_memory=low_memory)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), key


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
@pytest.mark.parametrize("way", ["fused", "foreach", "plain"])
@every_engine
def test_a_step_of_an_optimizer_is_that_after_pytorchs_own_pass(way: str, kind: Any, low_memory: bool) -> None:
    model = channels_last()
    twin = copy.deepcopy(model)
    for parameter, of_twin in zip(model.parameters(), twin.parameters(), strict=True):
        assert parameter.stride() == of_twin.stride()
    options = {"fused": {"fused": True}, "foreach": {"foreach": True}, "plain": {"foreach": False}}[way]
    optimizers = [kind(of.parameters(), 0.05, **options) for of in (model, twin)]
    for step in range(2):
        mtrl.EqualWeights(TASKS).backward(losses(model, step), low_memory=low_memory)
        torch.stack(losses(twin, step)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for (key, parameter), of_twin in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(parameter, of_twin[1], msg=lambda text, key=key: f"{key}: {text}")
