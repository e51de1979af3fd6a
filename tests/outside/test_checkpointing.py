"""Activation checkpointing: a block runs again in every backward pass."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import mtrl
from tests.outside.reference import (
    TASKS,
    Heads,
    assert_same_gradients,
    batch,
    check,
    every_balancer,
    every_engine,
    right_or_refused,
    shared_of_heads,
)


class Checkpointed(Heads):
    """The encoder runs under `checkpoint`, with dropout and batch normalisation inside if wanted."""

    def __init__(self, reentrant: bool = False, middle: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(3, 8), nn.Tanh() if middle is None else middle, nn.Linear(8, 6)]
        super().__init__(nn.Sequential(*layers))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        z = checkpoint(self.encoder, x.requires_grad_(self.reentrant), use_reentrant=self.reentrant)
        return tuple(self.losses_of(z))


def losses(model: Heads, step: int) -> list[Tensor]:
    torch.manual_seed(step)
    return list(model(batch(step)))


def in_full(model: Any, step: int) -> list[Tensor]:
    """The same losses without checkpointing."""
    torch.manual_seed(step)
    z: Tensor = model.encoder(batch(step))
    found: list[Tensor] = model.losses_of(z)
    return found


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@every_balancer
@every_engine
def test_a_checkpointed_encoder(name: str, low_memory: bool, given: bool) -> None:
    check(Checkpointed(), losses, shared_of_heads, name, low_memory, given=given, plain=in_full)


@pytest.mark.parametrize("name", ["equal", "rgb"])
@every_engine
def test_dropout_inside_is_the_same_in_every_pass(name: str, low_memory: bool) -> None:
    check(Checkpointed(middle=nn.Dropout(0.4)), losses, shared_of_heads, name, low_memory, plain=in_full)


@every_engine
def test_the_global_random_numbers_go_on_as_after_a_plain_pass(low_memory: bool) -> None:
    model = Checkpointed(middle=nn.Dropout(0.4))
    after = []
    for balanced in (False, True):
        found = losses(model, 0)
        if balanced:
            mtrl.PCGrad(TASKS).backward(found, low_memory=low_memory)
        else:
            torch.stack(found).sum().backward()
        after.append(torch.rand(3))
    assert torch.equal(*after)


@pytest.mark.parametrize("name", ["equal", "gradnorm", "rgb"])
@every_engine
def test_the_old_reentrant_kind_is_right_or_refused(name: str, low_memory: bool) -> None:
    """It hides its parameters from the graph and can't be differentiated with `torch.autograd.grad`."""
    for given in (True, False):
        with right_or_refused("use_reentrant", "reentrant"):
            check(Checkpointed(reentrant=True), losses, shared_of_heads, name, low_memory, given=given, plain=in_full)


@every_engine
def test_checkpointed_segments_of_a_sequence(low_memory: bool) -> None:
    class Deep(Heads):
        def __init__(self) -> None:
            torch.manual_seed(0)
            widths = [3, 5, 5, 5, 6]
            super().__init__(
                nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(widths)))
            )

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.losses_of(checkpoint_sequential(self.encoder, 2, x, use_reentrant=False)))

    for name in ("pcgrad", "rgb"):
        check(Deep(), losses, shared_of_heads, name, low_memory, plain=in_full)


@pytest.mark.parametrize("name", ["equal", "pcgrad"])
@every_engine
def test_batch_normalisation_inside_is_updated_as_often_as_by_pytorch(name: str, low_memory: bool) -> None:
    """Once in the forward pass and once where the block runs again, whatever the number of tasks."""
    model = Checkpointed(middle=nn.BatchNorm1d(8).double())
    twin = copy.deepcopy(model)
    torch.stack(losses(twin, 0)).sum().backward()
    mtrl.make_balancer(name, TASKS).backward(losses(model, 0), low_memory=low_memory)
    for (key, actual), expected in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, msg=lambda text, key=key: f"{key}: {text}")
    if name == "equal":
        assert_same_gradients(model, twin)


@every_engine
def test_offloading_by_saved_tensor_hooks(low_memory: bool) -> None:
    def offloaded(model: Heads, step: int) -> list[Tensor]:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.numpy(), torch.from_numpy):
            return list(model(batch(step)))

    for name in ("pcgrad", "rgb"):
        check(Heads(), offloaded, shared_of_heads, name, low_memory, plain=in_full)
