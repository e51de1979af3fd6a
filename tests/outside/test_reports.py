"""Further situations, each from a public report or question of the users of such libraries."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtrl
from tests.outside.reference import (
    CLOSE,
    TASKS,
    Heads,
    assert_same_gradients,
    backward_by_hand,
    batch,
    check,
    eager,
    every_balancer,
    every_engine,
    private_of,
    refused,
)


@every_balancer
@every_engine
def test_a_loss_at_every_layer_reaches_only_the_layers_before_it(name: str, low_memory: bool) -> None:
    """Deep supervision: which parameters are shared (LibMTL, question 86)?"""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(TASKS)).double()
            self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(TASKS)).double()

        def losses(self, step: int) -> list[Tensor]:
            z, found = batch(step), []
            for task, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
                z = layer(z).tanh()
                found.append((head(z) - 2 * task).pow(2).mean())
            return found

    # The layers of at least two losses are shared by default; the first alone is reached by all of them.
    for given in (True, False):
        check(
            Deep(),
            lambda model, step: model.losses(step),
            lambda model: [*model.layers[0].parameters(), *model.layers[1].parameters()],
            name,
            low_memory,
            given=given,
            measured=lambda model: model.layers[0].weight,
        )


@every_balancer
@every_engine
def test_every_task_has_its_own_batch(name: str, low_memory: bool) -> None:
    """As LibMTL's `multi_input` (question 83): one forward pass of the encoder per task."""

    def losses(model: Heads, step: int) -> list[Tensor]:
        return [
            (head(model.encoder(batch(10 * step + task, 4 + task))) - 2 * task).pow(2).mean()
            for task, head in enumerate(model.heads)
        ]

    for given in (True, False):
        check(Heads(), losses, lambda model: list(model.encoder.parameters()), name, low_memory, given=given)


@every_engine
def test_every_task_has_its_own_batch_with_batch_normalisation(low_memory: bool) -> None:
    def losses(model: Heads, step: int) -> list[Tensor]:
        return [
            (head(model.encoder(batch(10 * step + task))) - 2 * task).pow(2).mean()
            for task, head in enumerate(model.heads)
        ]

    torch.manual_seed(0)
    model = Heads(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)))
    check(model, losses, lambda model: list(model.encoder.parameters()), "rgb", low_memory)
    # Two steps by hand and two by the balancer, three forward passes each.
    assert int(model.encoder[1].num_batches_tracked) == 2 * TASKS


@pytest.mark.parametrize("name", ["equal", "pcgrad", "rgb"])
@every_engine
def test_learned_uncertainty_weights_get_their_ordinary_gradient(name: str, low_memory: bool) -> None:
    """Kendall's log-variances in one tensor: every loss reaches it, and with `parameters` it stays private."""

    class Uncertain(Heads):
        def __init__(self) -> None:
            super().__init__()
            self.log_variances = nn.Parameter(torch.zeros(TASKS, dtype=torch.float64))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            losses = super().forward(x)
            return tuple(loss * (-s).exp() + s for loss, s in zip(losses, self.log_variances, strict=True))

    check(
        Uncertain(),
        lambda model, step: list(model(batch(step))),
        lambda model: list(model.encoder.parameters()),
        name,
        low_memory,
    )


@every_balancer
@every_engine
def test_a_task_whose_gradient_is_zero_is_no_error(name: str, low_memory: bool) -> None:
    """Dead ReLUs or a finished task: a projection on it would divide by zero (Pytorch-PCGrad, issue 7)."""

    def losses(model: Heads, step: int) -> list[Tensor]:
        first, second, third = model(batch(step))
        return [first, second, 0.0 * third]

    check(Heads(), losses, lambda model: list(model.encoder.parameters()), name, low_memory)


@every_balancer
@every_engine
def test_all_gradients_are_zero(name: str, low_memory: bool) -> None:
    def losses(model: Heads, step: int) -> list[Tensor]:
        return [0.0 * loss for loss in model(batch(step))]

    model = Heads()
    eager(name).backward(losses(model, 0), model.encoder.parameters(), low_memory=low_memory)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not bool(parameter.grad.any())


@pytest.mark.parametrize("exponent", [-12, 12])
@every_balancer
@every_engine
def test_losses_of_very_different_scales(name: str, low_memory: bool, exponent: int) -> None:
    """With norms of 1e12 and 1 NashMTL's weights vanish and training stands still (LibMTL, issue 39)."""

    def losses(model: Heads, step: int) -> list[Tensor]:
        first, second, third = model(batch(step))
        return [first * 10.0**exponent, second, third]

    check(
        Heads(),
        losses,
        lambda model: list(model.encoder.parameters()),
        name,
        low_memory,
        steps=1,
        tolerance={"rtol": 1e-5, "atol": 1e-7},
    )


@every_engine
def test_dropout_draws_the_same_random_numbers_as_in_a_plain_loop(low_memory: bool) -> None:
    """The balancers that choose at random have generators of their own."""
    after = []
    for name in ("plain", "pcgrad", "random", "rgb"):
        torch.manual_seed(7)
        model = Heads(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 6)))
        torch.manual_seed(7)
        losses = list(model(batch()))
        if name == "plain":
            torch.stack(losses).sum().backward()
        else:
            eager(name).backward(losses, model.encoder.parameters(), low_memory=low_memory)
        after.append(torch.rand(4))
    assert all(torch.equal(after[0], other) for other in after[1:])


@every_engine
def test_an_update_before_the_second_backward_pass_is_noticed(low_memory: bool) -> None:
    """Weights changed in place between forward and backward (Lightning, question 2820): autograd's own error."""
    model = Heads()
    losses = list(model(batch()))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        mtrl.PCGrad(TASKS).backward(losses, model.encoder.parameters(), low_memory=low_memory)
    assert all(parameter.grad is None for parameter in model.parameters())


@every_engine
def test_two_networks_are_trained_in_turn_from_one_graph(low_memory: bool) -> None:
    """As a generator and a discriminator: the losses of one must not reach the other's parameters."""
    generator, discriminator = Heads(), nn.Linear(6, 1).double()
    z = generator.encoder(batch())
    real = discriminator(torch.ones(8, 6, dtype=torch.float64))
    of_discriminator = [(discriminator(z.detach()) + 1).pow(2).mean(), (real - 1).pow(2).mean()]
    mtrl.PCGrad(2).backward(of_discriminator, discriminator.parameters(), low_memory=low_memory)
    assert all(parameter.grad is None for parameter in generator.parameters())
    discriminator.requires_grad_(False)
    adversarial = (discriminator(z) - 1).pow(2).mean()
    before = discriminator.weight.grad.clone()
    mtrl.PCGrad(2).backward([adversarial, generator.losses_of(z)[0]], low_memory=low_memory)
    assert torch.equal(discriminator.weight.grad, before)
    assert generator.encoder[0].weight.grad is not None


@every_engine
def test_layers_that_change_their_input_in_place(low_memory: bool) -> None:
    torch.manual_seed(0)
    model = Heads(nn.Sequential(nn.Linear(3, 8), nn.ReLU(inplace=True), nn.Linear(8, 6), nn.Hardtanh(inplace=True)))
    for name in ("pcgrad", "rgb", "gradnorm"):
        check(
            model,
            lambda model, step: list(model(batch(step))),
            lambda model: list(model.encoder.parameters()),
            name,
            low_memory,
            measured=lambda model: model.encoder[2].weight,
        )


@every_engine
def test_a_custom_function_that_is_differentiable_once(low_memory: bool) -> None:
    """Kernels from outside, as of attention or of a differentiable renderer."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y = torch.from_numpy(x.detach().numpy() ** 3)
            ctx.save_for_backward(x)
            return y

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            result: Tensor = 3 * x.pow(2) * gradient
            return result

    def losses(model: Heads, step: int) -> list[Tensor]:
        z: Tensor = Kernel.apply(model.encoder(batch(step)))  # type: ignore[no-untyped-call]
        return list(model.losses_of(z))

    for name in ("pcgrad", "rgb"):
        check(Heads(), losses, lambda model: list(model.encoder.parameters()), name, low_memory, given=False)


@every_engine
def test_a_parameter_that_is_shared_and_also_used_in_one_head(low_memory: bool) -> None:
    """Overlap of shared and private parameters (TorchJD, issue 196): its row is the whole gradient of each loss."""

    def losses(model: Heads, step: int) -> list[Tensor]:
        first, second, third = model(batch(step))
        return [first + model.encoder[2].weight.pow(2).sum(), second, third + model.heads[0].weight.sum().pow(2)]

    for name in ("equal", "pcgrad", "rgb"):
        check(
            Heads(),
            losses,
            lambda model: [*model.encoder.parameters(), model.heads[0].weight],
            name,
            low_memory,
            measured=lambda model: model.encoder[2].weight,
        )


@every_engine
def test_two_balancers_on_two_trunks(low_memory: bool) -> None:
    """Separate calls for separate trunks; a head's gradient is not counted twice."""

    class Trunks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.left, self.right = nn.Linear(3, 4).double(), nn.Linear(3, 4).double()
            self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(4)).double()

        def losses(self, which: int) -> list[Tensor]:
            z = (self.left, self.right)[which](batch(which))
            return [(self.heads[2 * which + task](z) - task).pow(2).mean() for task in range(2)]

    model = Trunks()
    twin = copy.deepcopy(model)
    for which, trunk in enumerate(("left", "right")):
        shared = list(getattr(twin, trunk).parameters())
        heads = twin.heads[2 * which : 2 * which + 2]
        backward_by_hand(eager("pcgrad", 2), twin.losses(which), shared, heads.parameters())
        eager("pcgrad", 2).backward(model.losses(which), getattr(model, trunk).parameters(), low_memory=low_memory)
    assert_same_gradients(model, twin)
    assert len(private_of(model, shared)) == len(list(model.parameters()))


@every_engine
def test_a_jacobian_vector_product_of_the_model_is_untouched(low_memory: bool) -> None:
    """`torch.func` transforms of a model that was balanced before."""
    model = Heads()
    mtrl.RGB(TASKS).backward(list(model(batch())), low_memory=low_memory)
    weights = {key: value.detach() for key, value in model.named_parameters()}

    def total(weights: dict[str, Tensor]) -> Tensor:
        return torch.stack(torch.func.functional_call(model, weights, (batch(),))).sum()

    slopes = torch.func.grad(total)(weights)
    model.zero_grad()
    mtrl.EqualWeights(TASKS).backward(list(model(batch())), low_memory=low_memory)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, slopes[key], **CLOSE)


@every_engine
def test_losses_under_inference_mode_are_refused(low_memory: bool) -> None:
    model = Heads()
    with torch.inference_mode():
        losses = list(model(batch()))
    with refused("task 0"):
        mtrl.RGB(TASKS).backward(losses, model.encoder.parameters(), low_memory=low_memory)
