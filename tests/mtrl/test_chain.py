"""The engine without autograd: the rows of `TaskMajorEngine`, which autograd's own are compared with elsewhere."""

import copy
import math

import pytest
import torch
from torch import nn

from mtrl.balancers import make_balancer, names
from mtrl.gradients import (
    Chain,
    ChainEngine,
    NonFiniteGradientError,
    Step,
    TaskMajorEngine,
    UnsupportedLayerError,
    register_step,
)
from mtrl.gradients.steps import STEPS

CHAINS = {
    "one layer": lambda: nn.Sequential(nn.Linear(5, 4)),
    "two hidden": lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)),
    "no bias": lambda: nn.Sequential(nn.Linear(5, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False)),
    "layer norm": lambda: nn.Sequential(
        nn.Linear(5, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4), nn.LayerNorm(4), nn.Linear(4, 4)
    ),
    "layer norm, nothing learned": lambda: nn.Sequential(
        nn.LayerNorm(5), nn.Linear(5, 16), nn.LayerNorm(16, elementwise_affine=False), nn.ReLU(), nn.Linear(16, 4)
    ),
    "ends in ReLU": lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU()),
    "starts with ReLU": lambda: nn.Sequential(nn.ReLU(), nn.Linear(5, 4)),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def example(rows, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=generator, dtype=dtype)
    wanted = torch.randn(rows, 4, generator=generator, dtype=dtype)
    return inputs, wanted


def reference(layers, num_tasks, inputs, wanted):
    """Values, losses and rows by autograd's graph."""
    engine = TaskMajorEngine(layers, num_tasks)
    with engine.record():
        values = layers(inputs)
        losses = (values - wanted).square().view(num_tasks, -1).mean(1)
    gradients = engine.backward(losses)
    return values.detach(), losses.detach(), gradients


def by_chain(engine, num_tasks, inputs, wanted):
    values = engine.forward(inputs)
    losses = (values - wanted).square().view(num_tasks, -1).mean(1)
    return values.clone(), engine.backward(2 * (values - wanted) * num_tasks / values.numel(), losses)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_tasks", [1, 3])
@pytest.mark.parametrize("kind", CHAINS)
def test_rows_are_those_of_the_task_major_engine(kind, num_tasks, dtype):
    torch.manual_seed(1)
    layers = CHAINS[kind]().to(dtype)
    engine = ChainEngine(layers, num_tasks)
    for seed, batch in enumerate((7, 2, 7)):  # shapes may change and come back
        inputs, wanted = example(num_tasks * batch, dtype, seed)
        values, gradients = by_chain(engine, num_tasks, inputs, wanted)
        their_values, their_losses, theirs = reference(layers, num_tasks, inputs, wanted)
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(values, their_values, **close)
        torch.testing.assert_close(gradients.losses, their_losses, **close)
        torch.testing.assert_close(gradients.jacobian, theirs.jacobian, **close)
        torch.testing.assert_close(gradients.layer_norms, theirs.layer_norms, **close)


def test_it_follows_parameters_that_change_in_place():
    layers = CHAINS["two hidden"]().double()
    engine = ChainEngine(layers, 2)
    weights = engine.layout.flatten_()  # before the first run: from then on they stay where they are
    inputs, wanted = example(8)
    for _ in range(3):
        _, gradients = by_chain(engine, 2, inputs, wanted)
        torch.testing.assert_close(gradients.jacobian, reference(layers, 2, inputs, wanted)[2].jacobian)
        with torch.no_grad():
            weights.sub_(0.1 * gradients.jacobian.sum(0))


def test_the_input_and_the_slope_are_left_alone():
    engine = ChainEngine(CHAINS["starts with ReLU"](), 2)
    inputs, slope = example(4, torch.float32)
    before = inputs.clone(), slope.clone()
    engine.forward(inputs)
    _ = engine.backward(slope).jacobian
    torch.testing.assert_close((inputs, slope), before, rtol=0, atol=0)


def test_no_graph_is_made():
    layers = CHAINS["two hidden"]()
    engine = ChainEngine(layers, 2)
    values = engine.forward(example(4, torch.float32)[0].requires_grad_())
    assert not values.requires_grad
    gradients = engine.backward(torch.ones_like(values))
    assert not gradients.jacobian.requires_grad
    assert gradients.losses is None
    assert all(parameter.grad is None for parameter in layers.parameters())


def test_hooks_are_noticed():
    layers = CHAINS["two hidden"]()
    chain = Chain(layers)
    assert not chain.hooked
    handle = layers[2].register_forward_hook(lambda *_: None)
    assert chain.hooked
    handle.remove()
    assert not chain.hooked


@pytest.mark.parametrize("coefficients", [(1.0, 1.0, 1.0), (2.0, -0.5, 0.0), (1e60, 0.0, 1.0)])
@pytest.mark.parametrize("kind", CHAINS)
def test_combined_without_the_rows_they_are_what_the_rows_combine_to(kind, coefficients):
    engine = ChainEngine(CHAINS[kind]().double(), 3)
    inputs, wanted = example(12)
    vector = torch.randn(engine.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    c = torch.tensor(coefficients, dtype=torch.float64)
    buffer = by_chain(engine, 3, inputs, wanted)[1].jacobian.fill_(math.nan)  # all gradients of the engine share it
    _, gradients = by_chain(engine, 3, inputs, wanted)
    plain, moved = gradients.combine(c).clone(), gradients.combine(c, vector, 3.0).clone()
    assert buffer.isnan().all()  # nobody has asked for the rows
    rows = gradients.jacobian  # which is still possible
    torch.testing.assert_close(plain, c @ rows)
    torch.testing.assert_close(moved, c @ rows + 3 * vector)
    torch.testing.assert_close(gradients.combine(c, vector, 3.0), moved)


def test_coefficients_beyond_the_rows_dtype_need_the_rows():
    engine = ChainEngine(CHAINS["two hidden"](), 2)
    values = engine.forward(example(4, torch.float32)[0])
    gradients = engine.backward(1e-30 * torch.ones_like(values))
    c = torch.tensor([1e45, 2e45], dtype=torch.float64)
    combined = gradients.combine(c)
    torch.testing.assert_close(combined, (c @ gradients.jacobian.double()).float())
    assert combined.isfinite().all()


@pytest.mark.parametrize("look_between", [False, True])
@pytest.mark.parametrize("name", names())
def test_a_row_that_is_not_finite_is_named_whoever_asks_for_it_and_when(name, look_between):
    engine, balancer = ChainEngine(CHAINS["two hidden"](), 3), make_balancer(name, 3)
    values = engine.forward(example(6, torch.float32)[0])
    slope = torch.ones_like(values)
    slope[3] = math.inf  # of task 1
    state = copy.deepcopy(balancer.state_dict())
    gradients = engine.backward(slope, torch.ones(3))

    def update():
        answer = balancer(gradients)
        if look_between:
            _ = gradients.jacobian
        answer.update(gradients)

    with pytest.raises(NonFiniteGradientError, match=r"^the gradient of task 1 is not finite$"):
        update()
    if balancer.looks_at != "nothing":  # otherwise the answer was made before anybody knew
        assert repr(balancer.state_dict()) == repr(state)


def test_what_they_combine_to_is_the_callers_own():
    engine = ChainEngine(CHAINS["two hidden"](), 2)
    values = engine.forward(example(4, torch.float32)[0])
    gradients = engine.backward(torch.ones_like(values))
    first = gradients.combine(torch.tensor([1.0, 0.0]))
    before = first.clone()
    gradients.combine(torch.tensor([0.0, 1.0]))
    assert torch.equal(first, before)


def test_gradients_asked_for_too_late_are_refused():
    engine = ChainEngine(CHAINS["two hidden"](), 2)
    inputs, slope = example(4, torch.float32)
    engine.forward(inputs)
    gradients = engine.backward(slope)
    engine.forward(inputs)
    for ask in (lambda: gradients.jacobian, lambda: gradients.combine(torch.ones(2)), lambda: gradients.gramian):
        with pytest.raises(RuntimeError, match="asked for too late"):
            ask()


def test_a_copy_has_buffers_and_parameters_of_its_own():
    engine = ChainEngine(CHAINS["two hidden"]().double(), 2)
    inputs, wanted = example(8)
    _, gradients = by_chain(engine, 2, inputs, wanted)
    rows = gradients.jacobian.clone()
    twin = copy.deepcopy(engine)
    with torch.no_grad():
        for parameter in twin.layout.parameters:
            parameter.mul_(2.0)
    _, others = by_chain(twin, 2, inputs, wanted)
    torch.testing.assert_close(others.jacobian, reference(twin.chain.layers, 2, inputs, wanted)[2].jacobian)
    torch.testing.assert_close(others.layer_norms, reference(twin.chain.layers, 2, inputs, wanted)[2].layer_norms)
    assert torch.equal(gradients.jacobian, rows)


class Doubling(nn.Module):
    """A layer that nobody knows."""

    def forward(self, x):
        return 2 * x


class DoublingStep(Step):
    def __init__(self, layer, x):
        self.x, self.y = x, torch.empty_like(x)

    def forward(self):
        torch.mul(self.x, 2, out=self.y)

    def backward(self, grad, rows, needs_input):
        grad_x = torch.empty_like(grad)
        return grad_x, lambda: torch.mul(grad, 2, out=grad_x)


def test_a_layer_is_refused_until_its_step_is_registered(monkeypatch):
    monkeypatch.setattr("mtrl.gradients.steps.STEPS", known := STEPS.copy())
    monkeypatch.setattr("mtrl.gradients.chain.STEPS", known)
    with pytest.raises(UnsupportedLayerError, match=r"layer '1' \(Doubling\) cannot run without autograd"):
        ChainEngine(nn.Sequential(nn.Linear(2, 2), Doubling()), 1)
    register_step(Doubling, DoublingStep)
    layers = nn.Sequential(nn.Linear(5, 4), Doubling(), nn.Linear(4, 4)).double()
    engine = ChainEngine(layers, 2)
    inputs, wanted = example(6)
    _, gradients = by_chain(engine, 2, inputs, wanted)
    losses = (layers(inputs) - wanted).square().view(2, -1).mean(1)
    for loss, row in zip(losses, gradients.jacobian, strict=True):
        autograd = torch.autograd.grad(loss, list(layers.parameters()), retain_graph=True)
        torch.testing.assert_close(row, torch.cat([part.flatten() for part in autograd]))


def test_what_cannot_be_treated_is_refused():
    linear = nn.Linear(3, 3)
    with pytest.raises(UnsupportedLayerError, match=r"layer '1' \(Linear\)"):
        ChainEngine(nn.Sequential(linear, linear), 1)  # used twice: its rows would be overwritten
    with pytest.raises(UnsupportedLayerError, match=r"layer '0' \(BatchNorm1d\)"):
        ChainEngine(nn.Sequential(nn.BatchNorm1d(3), linear), 1)
    replaced = nn.Linear(3, 3)
    replaced.forward = lambda x: x
    with pytest.raises(UnsupportedLayerError, match=r"layer '0' \(Linear\)"):
        Chain(nn.Sequential(replaced))
    with pytest.raises(ValueError, match="num_tasks is 0"):
        ChainEngine(nn.Sequential(linear), 0)
    engine = ChainEngine(nn.Sequential(linear), 2)
    with pytest.raises(ValueError, match="got 3 rows, which do not divide into 2 tasks"):
        engine.forward(torch.zeros(3, 3))
    with pytest.raises(RuntimeError, match="call `forward` first"):
        engine.backward(torch.zeros(2, 3))
