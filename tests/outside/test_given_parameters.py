"""What `parameters` may be: a module or any iterable of parameters.

A tensor that is no leaf, and one that no loss reaches, is refused.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

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
    losses_of_heads,
    private_of,
    refused,
    right_or_refused,
    shared_of_heads,
)

NAMED = ("parameters", "shared", "names", "dict", "pairs", "iterable", "tensor", "leaf")

TAKEN: dict[str, Callable[[Heads], Any]] = {
    "list": lambda model: list(model.encoder.parameters()),
    "tuple": lambda model: tuple(model.encoder.parameters()),
    "generator": lambda model: model.encoder.parameters(),
    "module": lambda model: model.encoder,
    "dict values": lambda model: dict(model.encoder.named_parameters()).values(),
    "ParameterList": lambda model: nn.ParameterList(model.encoder.parameters()),
    "chain": lambda model: itertools.chain(model.encoder[0].parameters(), model.encoder[2].parameters()),
    "listed twice": lambda model: [*model.encoder.parameters(), *model.encoder.parameters()],
}

# The right answer or one line that says what to give.
TAKEN_OR_REFUSED: dict[str, Callable[[Heads], Any]] = {
    "named_parameters": lambda model: model.encoder.named_parameters(),
    "dict": lambda model: dict(model.encoder.named_parameters()),
    "state_dict": lambda model: model.encoder.state_dict(keep_vars=True),
    "modules": lambda model: [model.encoder[0], model.encoder[2]],
    "groups of an optimizer": lambda model: torch.optim.SGD(model.encoder.parameters(), 0.1).param_groups,
}


@every_balancer
@every_engine
def test_a_list_of_parameters_is_taken(name: str, low_memory: bool) -> None:
    check(Heads(), losses_of_heads, shared_of_heads, name, low_memory, steps=3)


@pytest.mark.parametrize("way", TAKEN)
@pytest.mark.parametrize("name", ["gradnorm", "rgb"])
@every_engine
def test_a_module_and_any_iterable_of_parameters_are_taken(way: str, name: str, low_memory: bool) -> None:
    _check(way, name, low_memory)


def _check(way: str, name: str, low_memory: bool, ways: dict[str, Callable[[Heads], Any]] = TAKEN) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    shared = shared_of_heads(twin)
    backward_by_hand(eager(name), losses_of_heads(twin, 0), shared, private_of(twin, shared))
    eager(name).backward(losses_of_heads(model, 0), ways[way](model), low_memory=low_memory)
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("way", TAKEN_OR_REFUSED)
@every_engine
def test_another_container_of_parameters_is_taken_or_refused(way: str, low_memory: bool) -> None:
    with right_or_refused(*NAMED):
        _check(way, "rgb", low_memory, TAKEN_OR_REFUSED)


@every_engine
def test_an_engine_takes_a_module_too(low_memory: bool) -> None:
    del low_memory  # an engine that is given is the default one
    model = Heads()
    twin = copy.deepcopy(model)
    backward_by_hand(eager("rgb"), losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
    eager("rgb").backward(losses_of_heads(model, 0), engine=mtrl.AutogradEngine(model.encoder))
    assert_same_gradients(model, twin)


@every_engine
def test_a_sequential_of_layers_is_a_module_like_any_other(low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    backward_by_hand(eager("gradnorm"), losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
    part = nn.Sequential(model.encoder[0], model.encoder[2])
    eager("gradnorm").backward(losses_of_heads(model, 0), part, low_memory=low_memory)
    assert_same_gradients(model, twin)


@every_engine
def test_a_bare_tensor_is_one_parameter_or_refused(low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    weight = twin.encoder[2].weight
    backward_by_hand(eager("rgb"), losses_of_heads(twin, 0), [weight], private_of(twin, [weight]))
    with right_or_refused(*NAMED):
        eager("rgb").backward(losses_of_heads(model, 0), model.encoder[2].weight, low_memory=low_memory)
        assert_same_gradients(model, twin)


@every_engine
def test_a_generator_that_is_used_up_is_refused(low_memory: bool) -> None:
    model = Heads()
    parameters = model.encoder.parameters()
    mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), parameters, low_memory=low_memory)
    with refused("empty", "generator", "used up", "exhausted"):
        mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), parameters, low_memory=low_memory)


@every_engine
def test_an_empty_list_and_frozen_parameters_alone_are_refused(low_memory: bool) -> None:
    model = Heads()
    with refused("parameters"):
        mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), [], low_memory=low_memory)
    model.encoder.requires_grad_(False)
    with refused("parameters", "frozen", "requires_grad"):
        mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), model.encoder.parameters(), low_memory=low_memory)


@every_engine
def test_a_stale_copy_of_the_model_is_refused(low_memory: bool) -> None:
    model = Heads()
    stale = copy.deepcopy(model)
    with refused("no loss", "reach", "depend"):
        mtrl.RGB(TASKS).backward(losses_of_heads(model, 0), stale.encoder.parameters(), low_memory=low_memory)
    assert all(parameter.grad is None for parameter in (*model.parameters(), *stale.parameters()))


@every_engine
def test_parameters_that_a_move_replaced_are_refused(low_memory: bool) -> None:
    """`model.to(...)` may make new parameters; a list from before is stale, as an optimizer's is."""
    model = Heads()
    before = list(model.encoder.parameters())
    model.encoder = copy.deepcopy(model.encoder)
    with refused("no loss", "reach", "depend"):
        mtrl.RGB(TASKS).backward(losses_of_heads(model, 0), before, low_memory=low_memory)


@every_engine
def test_a_parameter_that_no_loss_reaches_keeps_none_or_is_refused(low_memory: bool) -> None:
    """With zeros in place of None, AdamW would let it decay. PyTorch leaves None."""
    model = Heads()
    model.encoder.append(nn.Identity())
    model.encoder[3].unused = nn.Parameter(torch.ones(4, dtype=torch.float64))
    with right_or_refused("no loss", "reach", "depend"):
        check(model, losses_of_heads, shared_of_heads, "rgb", low_memory)
        assert model.encoder[3].unused.grad is None
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    with right_or_refused("no loss", "reach", "depend"):
        mtrl.EqualWeights(TASKS).backward(losses_of_heads(model, 0), model.encoder.parameters(), low_memory=low_memory)
    optimizer.step()
    assert torch.equal(model.encoder[3].unused, torch.ones(4, dtype=torch.float64))


@every_engine
def test_a_parameter_that_one_loss_reaches_has_its_gradient(low_memory: bool) -> None:
    """Given as shared, its rows are zero for the other tasks."""
    for name in ("equal", "rgb", "pcgrad", "gradnorm"):
        check(
            Heads(),
            losses_of_heads,
            lambda model: [*model.encoder.parameters(), *model.heads[0].parameters()],
            name,
            low_memory,
            measured=lambda model: model.encoder[2].weight,
        )


@every_balancer
@every_engine
def test_all_parameters_may_be_given_and_heads_are_then_rows_like_others(name: str, low_memory: bool) -> None:
    check(
        Heads(),
        losses_of_heads,
        lambda model: list(model.parameters()),
        name,
        low_memory,
        measured=lambda model: model.encoder[2].weight,
    )


@every_engine
def test_a_part_of_the_encoder_may_be_given_and_the_rest_gets_its_ordinary_gradient(low_memory: bool) -> None:
    for name in ("rgb", "gradnorm", "aim"):
        check(Heads(), losses_of_heads, lambda model: list(model.encoder[2].parameters()), name, low_memory)


@every_engine
def test_frozen_parameters_among_the_given_are_left_out(low_memory: bool) -> None:
    model = Heads()
    model.encoder[0].requires_grad_(False)
    check(
        model,
        losses_of_heads,
        lambda model: list(model.encoder[2].parameters()),
        "rgb",
        low_memory,
        steps=2,
    )
    mtrl.RGB(TASKS).backward(losses_of_heads(model, 0), model.encoder.parameters(), low_memory=low_memory)
    assert model.encoder[0].weight.grad is None
    assert model.encoder[2].weight.grad is not None


# ----------------------------------------------------------------------------------------- tensors that are no leaves


@every_engine
def test_a_representation_is_balanced_or_refused(low_memory: bool) -> None:
    """As `rep_grad` of LibMTL: rows are taken on z, and the encoder gets what their combination leads to."""
    model = Heads()
    twin = copy.deepcopy(model)
    z = twin.encoder(batch())
    rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0].flatten() for loss in twin.losses_of(z)])
    values = torch.stack([loss.detach() for loss in twin.losses_of(z)])
    z.backward(eager("pcgrad").combine(rows, values).view_as(z), retain_graph=True)
    torch.autograd.backward(twin.losses_of(z.detach()))
    z = model.encoder(batch())
    with right_or_refused("leaf", "leaves"):
        eager("pcgrad").backward(model.losses_of(z), [z], low_memory=low_memory)
        assert_same_gradients(model, twin)
    if model.encoder[0].weight.grad is None:
        assert all(parameter.grad is None for parameter in model.parameters())  # after an error nothing has changed


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["old", "parametrized", "spectral"])
@every_engine
def test_a_normalised_weight_is_found_by_its_parameters(how: str, low_memory: bool) -> None:
    """`layer.weight` is then made from parameters at every forward pass, and is no leaf itself."""
    wrap: Callable[[nn.Linear], Any] = {
        "old": nn.utils.weight_norm,
        "parametrized": nn.utils.parametrizations.weight_norm,
        "spectral": nn.utils.parametrizations.spectral_norm,
    }[how]
    model = Heads()
    model.encoder[2] = wrap(model.encoder[2])
    if how == "spectral":
        model.eval()  # in training its power iteration makes every forward pass another one
    names = [name for name, _ in model.encoder[2].named_parameters()]
    twin = Heads()
    twin.encoder[2] = wrap(twin.encoder[2])
    twin.load_state_dict(model.state_dict())
    if how == "spectral":
        twin.eval()
    shared = [*twin.encoder[0].parameters(), *(dict(twin.encoder[2].named_parameters())[name] for name in names)]
    backward_by_hand(eager("rgb"), losses_of_heads(twin, 0), shared, private_of(twin, shared))
    eager("rgb").backward(losses_of_heads(model, 0), model.encoder, low_memory=low_memory)
    assert_same_gradients(model, twin)
    model.zero_grad()
    with refused("leaf", "leaves"):
        eager("rgb").backward(losses_of_heads(model, 0), [model.encoder[2].weight], low_memory=low_memory)


@every_engine
def test_a_functional_call_with_weights_of_another_network_reaches_that_network(low_memory: bool) -> None:
    """As for hypernetworks and meta-learning: the module's own parameters are not used, and giving them is refused."""

    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.maker = nn.Linear(2, 3 * 6).double()
            self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(TASKS)).double()
            self.template = nn.Linear(3, 6, bias=False).double()

        def losses(self, step: int) -> list[Tensor]:
            weight = self.maker(torch.tensor([1.0, step], dtype=torch.float64)).view(6, 3)
            z = torch.func.functional_call(self.template, {"weight": weight}, (batch(step),))
            return [(head(z) - 2 * task).pow(2).mean() for task, head in enumerate(self.heads)]

    check(
        Hyper(),
        lambda model, step: model.losses(step),
        lambda model: list(model.maker.parameters()),
        "rgb",
        low_memory,
        given=False,
    )
    model = Hyper()
    with refused("no loss", "reach", "depend"):
        mtrl.RGB(TASKS).backward(model.losses(0), model.template.parameters(), low_memory=low_memory)


# ------------------------------------------------------------------------------------------------- where to measure


@every_engine
@pytest.mark.parametrize("way", ["module", "tensor", "list", "generator"])
def test_the_last_shared_layer_may_be_given_in_the_ways_of_other_libraries(way: str, low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    shared = shared_of_heads(twin)
    by_hand, balancer = eager("gradnorm"), eager("gradnorm")
    layer: Any = {
        "module": model.encoder[0],
        "tensor": model.encoder[0].weight,
        "list": [model.encoder[0].weight],
        "generator": model.encoder[0].parameters(),
    }[way]
    for step in range(2):
        backward_by_hand(by_hand, losses_of_heads(twin, step), shared, twin.heads.parameters(), twin.encoder[0].weight)
    with right_or_refused("last_shared_layer"):
        for step in range(2):
            balancer.backward(losses_of_heads(model, step), model.encoder.parameters(), layer, low_memory=low_memory)
            layer = model.encoder[0].parameters() if way == "generator" else layer
        assert_same_gradients(model, twin)


@every_engine
def test_a_last_shared_layer_that_is_not_shared_is_refused(low_memory: bool) -> None:
    model = Heads()
    with refused("last_shared_layer", "shared"):
        mtrl.GradNorm(TASKS).backward(
            losses_of_heads(model, 0), model.encoder.parameters(), model.heads[0], low_memory=low_memory
        )
