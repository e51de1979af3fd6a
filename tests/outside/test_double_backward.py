"""Losses that hold gradients themselves: gradient penalties, physics-informed networks, meta-learning."""

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
    batch,
    check,
    eager,
    every_balancer,
    every_engine,
    shared_of_heads,
)


def with_penalty(model: Heads, step: int) -> list[Tensor]:
    """The last task is a penalty on the gradient with respect to the input."""
    x = batch(step).requires_grad_()
    first, second, third = model(x)
    (slope,) = torch.autograd.grad(third, x, create_graph=True)
    return [first, second, slope.pow(2).sum() + third]


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@every_balancer
@every_engine
def test_a_gradient_penalty(name: str, low_memory: bool, given: bool) -> None:
    check(Heads(), with_penalty, shared_of_heads, name, low_memory, given=given)


class Field(nn.Module):
    """A physics-informed network: one network, whose losses are a residual, a boundary and an initial condition."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.u = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def losses(self, step: int) -> list[Tensor]:
        x = batch(step, 8, 2).requires_grad_()
        u = self.u(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
        residual = (slope[:, 1] - curvature[:, 0]).pow(2).mean()
        boundary = self.u(batch(step + 100, 4, 2)).pow(2).mean()
        initial = (self.u(batch(step + 200, 4, 2)) - 1).pow(2).mean()
        return [residual, boundary, initial]


@every_balancer
@every_engine
def test_a_physics_informed_network(name: str, low_memory: bool) -> None:
    """The residual does not reach the last bias; its row is zero there."""
    check_field(name, low_memory, given=True)


@pytest.mark.parametrize("name", ["equal", "pcgrad", "rgb", "aim"])
@every_engine
def test_the_points_of_a_physics_informed_network_are_no_parameters(name: str, low_memory: bool) -> None:
    check_field(name, low_memory, given=False)


def check_field(name: str, low_memory: bool, given: bool) -> None:
    """Two steps of `Field`."""
    check(
        Field(),
        lambda model, step: model.losses(step),
        lambda model: list(model.u.parameters()),
        name,
        low_memory,
        given=given,
        measured=lambda model: model.u[4].weight,
    )


@every_engine
def test_gradients_of_the_input_are_ordinary_ones(low_memory: bool) -> None:
    model = Field()
    x, y = batch(0, 8, 2).requires_grad_(), batch(0, 8, 2).requires_grad_()
    found = []
    for point in (x, y):
        u = model.u(point)
        (slope,) = torch.autograd.grad(u.sum(), point, create_graph=True)
        found.append([slope.pow(2).mean(), (u - 1).pow(2).mean()])
    torch.stack(found[1]).sum().backward()
    mtrl.RGB(2).backward(found[0], model.u.parameters(), low_memory=low_memory)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad)


@every_engine
def test_an_inner_step_of_meta_learning(low_memory: bool) -> None:
    """The losses are those after a step on the weights; gradients go through that step."""

    def adapted(model: Heads, step: int) -> list[Tensor]:
        x = batch(step)
        weights = dict(model.named_parameters())
        inner = torch.stack(torch.func.functional_call(model, weights, (x,))).sum()
        slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        after = {key: weight - 1e-3 * slope for (key, weight), slope in zip(weights.items(), slopes, strict=True)}
        return list(torch.func.functional_call(model, after, (batch(step + 50),)))

    model = Heads()
    twin = copy.deepcopy(model)
    # The inner sum of the losses ties every head to every loss: all parameters are shared.
    everything = list(twin.parameters())
    backward_by_hand(eager("pcgrad"), adapted(twin, 0), everything, [])
    eager("pcgrad").backward(adapted(model, 0), model.parameters(), low_memory=low_memory)
    assert_same_gradients(model, twin)


@every_engine
def test_second_derivatives_of_the_balanced_gradient_are_not_offered_silently(low_memory: bool) -> None:
    """`.grad` has no graph, as after `backward()` without `create_graph`."""
    model = Heads()
    mtrl.PCGrad(TASKS).backward(with_penalty(model, 0), low_memory=low_memory)
    assert all(not parameter.grad.requires_grad for parameter in model.parameters() if parameter.grad is not None)
