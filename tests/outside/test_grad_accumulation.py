"""`.grad` is accumulated as `Tensor.backward` accumulates it: in place, in the parameter's layout, with its hooks."""

import copy

import pytest
import torch
from torch import Tensor, nn

import mtrl
from tests.outside.reference import (
    TASKS,
    Heads,
    assert_same_gradients,
    backward_by_hand,
    eager,
    every_balancer,
    every_engine,
    losses_of_heads,
    shared_of_heads,
)


def plain(model: Heads, step: int = 0) -> None:
    """PyTorch's own backward pass."""
    torch.stack(losses_of_heads(model, step)).sum().backward()


@every_engine
def test_equal_weights_are_pytorchs_own_backward(low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    for step in range(3):
        plain(twin, step)
        mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, step), low_memory=low_memory)
    assert_same_gradients(model, twin)


@every_engine
def test_a_gradient_that_is_there_is_added_to_in_place(low_memory: bool) -> None:
    """Flat buffers, DDP's views and whoever else holds a reference to `.grad` see the sum."""
    model = Heads()
    plain(model)
    held = [parameter.grad for parameter in model.parameters()]
    before = [gradient.clone() for gradient in held if gradient is not None]
    mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), low_memory=low_memory)
    for parameter, gradient, old in zip(model.parameters(), held, before, strict=True):
        assert parameter.grad is gradient
        torch.testing.assert_close(gradient, 2 * old)


@every_engine
def test_gradients_that_are_views_of_a_flat_buffer_stay_so(low_memory: bool) -> None:
    model = Heads()
    flat = torch.zeros(sum(parameter.numel() for parameter in model.parameters()), dtype=torch.float64)
    start = 0
    for parameter in model.parameters():
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    mtrl.RGB(TASKS).backward(losses_of_heads(model, 0), low_memory=low_memory)
    joined = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    assert bool(flat.any())
    assert torch.equal(flat, joined)


@every_engine
def test_gradients_of_different_parameters_share_no_memory(low_memory: bool) -> None:
    """Else clipping one in place would clip the others."""
    model = Heads()
    mtrl.RGB(TASKS).backward(losses_of_heads(model, 0), low_memory=low_memory)
    model.encoder[0].weight.grad.zero_()
    others = [parameter for parameter in model.parameters() if parameter is not model.encoder[0].weight]
    assert all(bool(parameter.grad.any()) for parameter in others if parameter.grad is not None)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@every_engine
def test_a_new_gradient_has_the_strides_of_its_parameter(layout: str, low_memory: bool) -> None:
    """The contract of PyTorch's AccumulateGrad, which fused and foreach optimizers rely on."""
    model = Heads()
    if layout == "transposed":
        model.encoder[0].weight = nn.Parameter(model.encoder[0].weight.detach().t().contiguous().t())
    twin = copy.deepcopy(model)
    if layout == "transposed":
        twin.encoder[0].weight = nn.Parameter(twin.encoder[0].weight.detach().t().contiguous().t())
    plain(twin)
    mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), low_memory=low_memory)
    for (name, actual), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert actual.grad is not None
        assert expected.grad is not None
        assert actual.grad.stride() == expected.grad.stride() == actual.stride(), name
        assert not actual.grad.requires_grad


@every_engine
def test_the_precision_of_a_gradient_is_that_of_its_parameter(low_memory: bool) -> None:
    model = Heads()
    model.encoder[0].float()
    losses = model.losses_of(model.encoder[2](model.encoder[0](torch.ones(4, 3)).tanh().double()))
    mtrl.PCGrad(TASKS).backward(losses, low_memory=low_memory)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype


@pytest.mark.parametrize("set_to_none", [True, False])
@every_balancer
@every_engine
def test_zero_grad_of_either_kind_begins_anew(name: str, low_memory: bool, set_to_none: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), low_memory=low_memory)
    optimizer.zero_grad(set_to_none=set_to_none)
    backward_by_hand(eager(name), losses_of_heads(twin, 1), shared_of_heads(twin), twin.heads.parameters())
    eager(name).backward(losses_of_heads(model, 1), low_memory=low_memory)
    assert_same_gradients(model, twin)


@every_engine
def test_clipping_and_unused_parameters_are_as_after_a_plain_pass(low_memory: bool) -> None:
    model = Heads()
    model.idle = nn.Linear(2, 2).double()
    twin = copy.deepcopy(model)
    plain(twin)
    mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), low_memory=low_memory)
    norms = [nn.utils.clip_grad_norm_(of.parameters(), 0.5) for of in (model, twin)]
    torch.testing.assert_close(*norms)
    assert_same_gradients(model, twin)
    assert model.idle.weight.grad is None


@every_engine
def test_an_error_leaves_every_gradient_as_it_was(low_memory: bool) -> None:
    model = Heads()
    plain(model)
    held = [
        (parameter, parameter.grad, parameter.grad.clone())
        for parameter in model.parameters()
        if parameter.grad is not None
    ]
    losses = losses_of_heads(model, 1)
    losses[1] = losses[1] * torch.inf
    with pytest.raises(mtrl.NonFiniteGradientError):
        mtrl.RGB(TASKS).backward(losses, low_memory=low_memory)
    for parameter, gradient, copied in held:
        assert parameter.grad is gradient
        assert torch.equal(gradient, copied)


@every_engine
def test_losses_are_not_changed(low_memory: bool) -> None:
    model = Heads()
    losses = losses_of_heads(model, 0)
    values = [loss.detach().clone() for loss in losses]
    weights: Tensor = mtrl.GradNorm(TASKS).backward(losses, low_memory=low_memory)
    assert all(torch.equal(loss.detach(), value) for loss, value in zip(losses, values, strict=True))
    assert all(loss.grad_fn is not None for loss in losses)
    assert not weights.requires_grad
