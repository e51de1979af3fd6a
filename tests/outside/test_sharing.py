"""Which parameters are shared, when the losses reach `backward` in another form than a list and none are given.

What is done to each loss by itself, linear or elementwise, is seen through. Where it can't be known what each loss
depends on, `parameters` is asked for; a head never silently counts as shared.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtrl
from tests.outside.reference import (
    TASKS,
    Heads,
    batch,
    check,
    every_balancer,
    every_engine,
    losses_of_heads,
    right_or_refused,
    shared_of_heads,
)

# For each way, the vector that reaches `backward`, and the factor by which it differs from the list of losses.
SEEN_THROUGH: dict[str, tuple[Callable[[list[Tensor]], Any], float]] = {
    "list": (list, 1),
    "tuple": (tuple, 1),
    "stack": (torch.stack, 1),
    "stack / 4": (lambda losses: torch.stack(losses) / 4, 0.25),
    "0.25 * stack": (lambda losses: 0.25 * torch.stack(losses), 0.25),
    "stack / tensor": (lambda losses: torch.stack(losses) / torch.tensor(4.0, dtype=torch.float64), 0.25),
    "hstack": (torch.hstack, 1),
    "cat": (lambda losses: torch.cat([loss.reshape(1) for loss in losses]), 1),
    "cat of unsqueezed": (lambda losses: torch.cat([loss[None] for loss in losses]), 1),
    "stack + 0": (lambda losses: torch.stack(losses) + 0, 1),
    "stack - 0": (lambda losses: torch.stack(losses) - 0, 1),
    "stack.double()": (lambda losses: torch.stack(losses).double(), 1),
    "stack.float().double()": (lambda losses: torch.stack(losses).float().double(), 1),
    "stack.clone()": (lambda losses: torch.stack(losses).clone(), 1),
    "scaler.scale(stack)": (
        lambda losses: torch.amp.GradScaler("cpu", init_scale=4.0).scale(torch.stack(losses)),
        4,
    ),
    "scaler.scale(list)": (lambda losses: torch.amp.GradScaler("cpu", init_scale=4.0).scale(losses), 4),
    "list(stack)": (lambda losses: list(torch.stack(losses)), 1),
    "stack[i]": (lambda losses: [torch.stack(losses)[task] for task in range(TASKS)], 1),
    "stack[:]": (lambda losses: torch.stack(losses)[:], 1),
    "(stack / 4).unbind()": (lambda losses: (torch.stack(losses) / 4).unbind(), 0.25),
    "stack.split(1)": (lambda losses: torch.stack(losses).split(1), 1),
    "stack.reshape(3, 1)": (lambda losses: list(torch.stack(losses).reshape(TASKS, 1)), 1),
    "stack.view(1, 3)[0]": (lambda losses: torch.stack(losses).view(1, TASKS)[0], 1),
    "stack * weights": (lambda losses: torch.stack(losses) * torch.full((TASKS,), 0.5, dtype=torch.float64), 0.5),
    "losses / 4": (lambda losses: [loss / 4 for loss in losses], 0.25),
    "index by a tensor": (lambda losses: torch.stack(losses)[torch.arange(TASKS)], 1),
    "index_select": (lambda losses: torch.stack(losses).index_select(0, torch.arange(TASKS)), 1),
    "flip twice": (lambda losses: torch.stack(losses).flip(0).flip(0), 1),
    "where": (lambda losses: torch.where(torch.ones(TASKS, dtype=torch.bool), torch.stack(losses), 0.0), 1),
    "nan_to_num": (lambda losses: torch.stack(losses).nan_to_num(), 1),
}


def in_place(losses: list[Tensor]) -> Tensor:
    """A vector that is filled in place."""
    vector = torch.zeros(len(losses), dtype=torch.float64)
    for task, loss in enumerate(losses):
        vector[task] = loss
    return vector


# Here a loss may end where no rule sees through: then the answer is right, or `parameters` is asked for.
RIGHT_OR_ASKED: dict[str, Callable[[list[Tensor]], Any]] = {
    "in-place fill": in_place,
    "in-place add": lambda losses: in_place([loss / 2 for loss in losses]).add_(torch.stack(losses) / 2),
    "stack @ eye": lambda losses: torch.stack(losses) @ torch.eye(TASKS, dtype=torch.float64),
    "stack of stacks": lambda losses: torch.stack([torch.stack(losses), torch.stack(losses)]).mean(0),
    "einsum": lambda losses: torch.einsum("t,t->t", torch.stack(losses), torch.ones(TASKS, dtype=torch.float64)),
}


@pytest.mark.parametrize("way", SEEN_THROUGH)
@pytest.mark.parametrize("name", ["gradnorm", "rgb"])
@every_engine
def test_what_is_done_to_each_loss_by_itself_does_not_make_heads_shared(way: str, name: str, low_memory: bool) -> None:
    check_way(way, name, low_memory)


@pytest.mark.parametrize("way", ["list", "stack / 4"])
@every_balancer
@every_engine
def test_heads_are_not_shared_for_any_balancer(way: str, name: str, low_memory: bool) -> None:
    check_way(way, name, low_memory)


def check_way(way: str, name: str, low_memory: bool) -> None:
    """Losses in one of the forms of `SEEN_THROUGH`, without `parameters`."""
    through, factor = SEEN_THROUGH[way]
    check(
        Heads(),
        losses_of_heads,
        shared_of_heads,
        name,
        low_memory,
        given=False,
        through=through,
        plain=lambda model, step: [factor * loss for loss in losses_of_heads(model, step)],
        tolerance={"rtol": 1e-5, "atol": 1e-6} if "float" in way else None,
    )


@pytest.mark.parametrize("way", RIGHT_OR_ASKED)
@pytest.mark.parametrize("name", ["equal", "rgb"])
@every_engine
def test_a_mixture_of_losses_is_balanced_rightly_or_parameters_are_asked_for(
    way: str, name: str, low_memory: bool
) -> None:
    with right_or_refused("parameters"):
        check(
            Heads(),
            losses_of_heads,
            shared_of_heads,
            name,
            low_memory,
            given=False,
            through=RIGHT_OR_ASKED[way],
        )


@pytest.mark.parametrize("way", RIGHT_OR_ASKED)
@pytest.mark.parametrize("name", ["gradnorm", "rgb"])
@every_engine
def test_where_parameters_are_given_the_form_of_the_losses_does_not_matter(
    way: str, name: str, low_memory: bool
) -> None:
    check(Heads(), losses_of_heads, shared_of_heads, name, low_memory, through=RIGHT_OR_ASKED[way])


@every_engine
def test_gradnorm_finds_the_same_weights_for_a_list_and_for_a_stack_over_micro_batches(low_memory: bool) -> None:
    found = []
    for through in (list, lambda losses: torch.stack(losses) / 4):
        model, balancer = Heads(), mtrl.GradNorm(TASKS, warmup_steps=1, lr=0.3)
        for step in range(5):
            balancer.backward(through(losses_of_heads(model, step)), low_memory=low_memory)
            model.zero_grad()
        found.append(balancer.weights)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("form", ["list", "vector"])
@pytest.mark.parametrize("name", ["gradnorm", "pcgrad", "rgb"])
@every_engine
def test_a_vector_with_a_number_for_each_task_is_not_shared(form: str, name: str, low_memory: bool) -> None:
    """As Kendall's log-variances in one tensor: every loss reaches the tensor, and takes a number of its own."""

    class Uncertain(Heads):
        def __init__(self) -> None:
            super().__init__()
            self.log_variances = nn.Parameter(torch.zeros(TASKS, dtype=torch.float64))

    def losses(model: Uncertain, step: int) -> list[Tensor]:
        s, found = model.log_variances, torch.stack(losses_of_heads(model, step))
        if form == "vector":
            return [found * (-s).exp() + s]
        return [loss * (-of_task).exp() + of_task for loss, of_task in zip(found, s, strict=True)]

    check(
        Uncertain(),
        losses,
        shared_of_heads,
        name,
        low_memory,
        given=False,
        through=lambda found: found[0] if form == "vector" else found,
        plain=lambda model, step: [
            loss for part in losses(model, step) for loss in (part.unbind() if part.ndim else [part])
        ],
    )


class Columns(nn.Module):
    """The losses of all tasks come from one tensor of predictions, as with a layer of T outputs or joined heads."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(3, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(TASKS)) if joined else nn.ModuleList()
        self.output = None if joined else nn.Linear(6, TASKS)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).tanh()
        outputs = torch.cat([head(z) for head in self.heads], 1) if self.output is None else self.output(z)
        losses: Tensor = (outputs - torch.arange(TASKS) * 2).pow(2).mean(0)
        return losses


@pytest.mark.parametrize("name", ["equal", "gradnorm", "rgb"])
@every_engine
def test_joined_heads_are_not_shared(name: str, low_memory: bool) -> None:
    with right_or_refused("parameters"):
        check(
            Columns(joined=True),
            lambda model, step: list(model(batch(step)).unbind()),
            shared_of_heads,
            name,
            low_memory,
            given=False,
            through=lambda losses: losses[0]._base if losses[0]._base is not None else torch.stack(losses),
        )


@pytest.mark.parametrize("name", ["equal", "gradnorm", "rgb"])
@every_engine
def test_a_layer_of_all_outputs_is_shared(name: str, low_memory: bool) -> None:
    with right_or_refused("parameters"):
        check(
            Columns(joined=False),
            lambda model, step: list(model(batch(step)).unbind()),
            lambda model: list(model.parameters()),
            name,
            low_memory,
            given=False,
            measured=lambda model: model.output.weight,
        )


# ------------------------------------------------------------------------------------- leaves that are no parameters


@every_balancer
@every_engine
def test_an_input_that_requires_a_gradient_is_no_parameter(name: str, low_memory: bool) -> None:
    """As in adversarial training and for physics-informed networks. Its gradient is the ordinary one."""
    inputs: list[Tensor] = []

    def losses(model: Heads, step: int) -> list[Tensor]:
        inputs.append(batch(step).requires_grad_())
        return list(model(inputs[-1]))

    check(Heads(), losses, shared_of_heads, name, low_memory, given=False)
    for by_hand, by_backward in zip(inputs[::2], inputs[1::2], strict=True):
        assert by_hand.grad is None
        assert by_backward.grad is not None
        assert by_backward.grad.shape == by_backward.shape


@every_engine
def test_the_gradient_of_an_input_is_that_of_the_sum_of_the_losses(low_memory: bool) -> None:
    model = Heads()
    x, y = batch().requires_grad_(), batch().requires_grad_()
    mtrl.GradNorm(TASKS).backward(model(x), low_memory=low_memory)
    torch.stack(model(y)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad)


@every_engine
def test_batches_of_other_sizes_do_not_change_what_rgb_remembers(low_memory: bool) -> None:
    model, balancer = Heads(), mtrl.RGB(TASKS)
    for step, rows in enumerate((8, 5, 11)):
        balancer.backward(model(batch(step, rows).requires_grad_()), low_memory=low_memory)


@every_engine
def test_an_embedding_output_that_requires_a_gradient_is_no_parameter(low_memory: bool) -> None:
    """As `enable_input_require_grads` does where adapters are trained on a frozen model."""

    class Adapted(Heads):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3).double().requires_grad_(False)
            self.encoder[0].requires_grad_(False)
            self.down = nn.Linear(3, 2, bias=False).double()
            self.up = nn.Linear(2, 8, bias=False).double()

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            e = self.embedding(x).requires_grad_()
            return tuple(self.losses_of(self.encoder[2]((self.encoder[0](e) + self.up(self.down(e))).tanh())))

    def shared(model: Adapted) -> list[Tensor]:
        return [model.down.weight, model.up.weight, *model.encoder[2].parameters()]

    for name in ("gradnorm", "rgb", "pcgrad"):
        check(
            Adapted(),
            lambda model, step: list(model(torch.tensor([step, 1, 2, 4]))),
            shared,
            name,
            low_memory,
            given=False,
            measured=lambda model: model.encoder[2].weight,
        )


@every_balancer
@every_engine
def test_plain_leaves_count_where_they_are_given(name: str, low_memory: bool) -> None:
    """Such as the weights of a model written without modules."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = batch(5, 3, 4)

    def losses(model: Plain, step: int) -> list[Tensor]:
        model.theta.requires_grad_()
        z = (batch(step) @ model.theta).tanh()
        return [(z[:, task] - task).pow(2).mean() + z.pow(2).mean() for task in range(TASKS)]

    check(Plain(), losses, lambda model: [model.theta.requires_grad_()], name, low_memory)
