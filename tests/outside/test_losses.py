"""What the losses may be.

A dict works, and its names are the tasks' names. What can't be balanced is refused in one line.
"""

import copy
import json
import random
from pathlib import Path
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
    refused,
    right_or_refused,
    shared_of_heads,
)

TASK_NAMES = ("depth", "normals", "edges")


def as_dict(losses: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(TASK_NAMES, losses, strict=True))


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@every_balancer
@every_engine
def test_a_dict_of_losses_is_as_good_as_a_list(name: str, low_memory: bool, given: bool) -> None:
    check(Heads(), losses_of_heads, shared_of_heads, name, low_memory, given=given, through=as_dict)


def test_the_tasks_of_a_dict_are_in_its_own_order() -> None:
    model, of_dict, of_list = Heads(), eager("gradnorm"), eager("gradnorm")
    for step in range(3):
        losses = losses_of_heads(model, step)[::-1]
        expected = of_list.backward(losses, model.encoder.parameters(), retain_graph=True)
        actual = of_dict.backward(dict(zip(TASK_NAMES[::-1], losses, strict=True)), model.encoder.parameters())
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["gradnorm", "rgb", "aim"])
def test_a_dict_may_change_its_order_within_a_process_and_from_one_to_the_next(name: str, tmp_path: Path) -> None:
    model, steady, changing = Heads(), eager(name), eager(name)
    for step in range(4):
        losses = as_dict(losses_of_heads(model, step))
        mixed = {task: losses[task] for task in random.Random(step).sample(TASK_NAMES, TASKS)}
        mask = [task != "normals" or step != 2 for task in mixed]
        there = [task != "normals" or step != 2 for task in losses]
        expected = steady.backward(losses, model.encoder.parameters(), mask=there, retain_graph=True)
        found = changing.backward(mixed, model.encoder.parameters(), mask=mask)
        of_task = dict(zip(mixed, found.tolist(), strict=True))
        assert of_task == pytest.approx(dict(zip(losses, expected.tolist(), strict=True)))
        torch.save(changing.state_dict(), tmp_path / "state.pt")
        changing = eager(name)
        changing.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_a_state_of_other_tasks_is_refused_and_so_are_names_that_are_one_as_text() -> None:
    model, used, other = Heads(), eager("gradnorm"), eager("gradnorm")
    used.backward(as_dict(losses_of_heads(model, 0)))
    other.backward(dict(zip("abc", losses_of_heads(model, 0), strict=True)))
    with pytest.raises(ValueError, match=r"^the state is of the tasks depth, normals, edges, not of a, b, c$"):
        other.load_state_dict(used.state_dict())
    losses = losses_of_heads(model, 0)
    with pytest.raises(ValueError, match=r"^two tasks have the same name as text: 1, '1', 2$"):
        eager("equal").backward({1: losses[0], "1": losses[1], 2: losses[2]})


@every_engine
def test_a_task_of_a_dict_may_be_missing(low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    losses = losses_of_heads(twin, 0)
    expected = eager("pcgrad").backward([losses[0], None, losses[2]], twin.encoder.parameters())
    losses = losses_of_heads(model, 0)
    actual = eager("pcgrad").backward(
        {**as_dict(losses), "normals": None}, model.encoder.parameters(), low_memory=low_memory
    )
    torch.testing.assert_close(actual, expected)
    assert_same_gradients(model, twin)


@every_engine
def test_the_names_of_a_dict_are_the_tasks_names_in_a_recording(low_memory: bool, tmp_path: Path) -> None:
    model, balancer = Heads(), eager("gradnorm")
    with mtrl.Recorder(tmp_path / "metrics.jsonl", balancer, every=1):
        balancer.backward(as_dict(losses_of_heads(model, 0)), low_memory=low_memory)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    for task in TASK_NAMES:
        assert f"train/{task}/loss" in line
        assert f"balancer/{task}/weight" in line


@every_engine
def test_the_names_of_a_dict_are_in_errors(low_memory: bool) -> None:
    model = Heads()
    losses = as_dict(losses_of_heads(model, 0))
    losses["normals"] = losses["normals"] * torch.nan
    with pytest.raises(mtrl.NonFiniteGradientError, match="normals"):
        mtrl.PCGrad(TASKS).backward(losses, low_memory=low_memory)
    losses = as_dict(losses_of_heads(model, 0))
    losses["edges"] = losses["edges"].detach()
    with refused("edges"):
        mtrl.PCGrad(TASKS).backward(losses, low_memory=low_memory)


@every_engine
def test_a_generator_of_losses_is_taken_or_refused(low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    backward_by_hand(eager("rgb"), losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
    with right_or_refused("losses", "generator"):
        eager("rgb").backward((loss for loss in losses_of_heads(model, 0)), low_memory=low_memory)  # type: ignore[arg-type]
        assert_same_gradients(model, twin)


def wrong(kind: str, losses: list[Tensor]) -> Any:
    """Losses of which the second, or all together, can't be balanced."""
    first, second, third = losses
    of_second: dict[str, Any] = {
        "float": second.item(),
        "integer": 1,
        "numpy": second.detach().numpy(),
        "string": "0.5",
        "detached": second.detach(),
        "constant": torch.tensor(1.0),
        "complex": second * torch.tensor(1 + 1j),
        "two numbers": torch.stack([second, third]),
        "empty": second[None][:0],
    }
    return [first, of_second[kind], third]


@pytest.mark.parametrize(
    "kind",
    ["float", "integer", "numpy", "string", "detached", "constant", "complex", "two numbers", "empty"],
)
@every_engine
def test_a_loss_that_cannot_be_balanced_is_refused_by_its_task(kind: str, low_memory: bool) -> None:
    model = Heads()
    for parameters in (None, list(model.encoder.parameters())):
        with refused("task 1"):
            mtrl.RGB(TASKS).backward(wrong(kind, losses_of_heads(model, 0)), parameters, low_memory=low_memory)
        assert all(parameter.grad is None for parameter in model.parameters())


@every_engine
def test_a_complex_loss_is_said_to_be_complex(low_memory: bool) -> None:
    with refused("complex"):
        mtrl.RGB(TASKS).backward(wrong("complex", losses_of_heads(Heads(), 0)), low_memory=low_memory)


@pytest.mark.parametrize("name", ["equal", "gradnorm"])
@every_engine
def test_a_sum_of_the_losses_is_refused(name: str, low_memory: bool) -> None:
    """The most common mistake: there is one loss then, and nothing to balance."""
    model = Heads()
    with refused("one loss per task", "sum", "each task", "per task"):
        eager(name).backward(torch.stack(losses_of_heads(model, 0)).sum(), low_memory=low_memory)


@every_engine
def test_no_losses_and_a_wrong_number_of_them_are_refused(low_memory: bool) -> None:
    model = Heads()
    with refused("3"):
        mtrl.RGB(TASKS).backward(losses_of_heads(model, 0)[:2], low_memory=low_memory)
    for empty in ([], {}, torch.empty(0)):
        with refused("no losses", "0 losses", "got 0"):
            mtrl.RGB().backward(empty, low_memory=low_memory)


@every_engine
def test_losses_of_every_precision_and_shape_that_hold_one_number_are_taken(low_memory: bool) -> None:
    def through(losses: list[Tensor]) -> list[Tensor]:
        return [losses[0].reshape(1), losses[1].float(), losses[2].reshape(1, 1)]

    check(
        Heads(),
        losses_of_heads,
        shared_of_heads,
        "rgb",
        low_memory,
        through=through,
        tolerance={"rtol": 1e-5, "atol": 1e-6},
    )


@every_engine
def test_a_loss_that_is_itself_a_parameter_is_balanced_or_refused(low_memory: bool) -> None:
    """Such as a learned penalty that is added as a task of its own."""

    class Penalised(Heads):
        def __init__(self) -> None:
            super().__init__(tasks=2)
            self.penalty = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def losses(model: Penalised, step: int) -> list[Tensor]:
        return [*model(batch(step)), model.penalty]

    for name in ("equal", "gradnorm"):
        with right_or_refused("leaf", "itself", "parameter of its own"):
            check(Penalised(), losses, shared_of_heads, name, low_memory)


@every_engine
def test_a_loss_that_reaches_no_shared_parameter_is_a_zero_row(low_memory: bool) -> None:
    """As a regulariser of one head alone."""

    def losses(model: Heads, step: int) -> list[Tensor]:
        return [*model(batch(step))[:2], model.heads[2].weight.pow(2).sum()]

    for name in ("equal", "pcgrad", "rgb", "aim"):
        check(Heads(), losses, shared_of_heads, name, low_memory, measured=lambda model: model.encoder[2].weight)


@every_balancer
@every_engine
def test_one_loss_alone_keeps_its_own_gradient(name: str, low_memory: bool) -> None:
    model = Heads(tasks=1)
    twin = copy.deepcopy(model)
    twin(batch())[0].backward()
    eager(name, 1).backward(list(model(batch())), model.encoder.parameters(), low_memory=low_memory)
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("name", ["gradnorm", "gradnorm_pcgrad", "aim"])
@every_engine
def test_a_negative_loss_is_refused_with_what_to_set(name: str, low_memory: bool) -> None:
    model = Heads()
    losses = losses_of_heads(model, 0)
    with refused("progress"):
        eager(name).backward([losses[0], losses[1] - 1e3, losses[2]], low_memory=low_memory)


# ----------------------------------------------------------------------------------------- at which moment they come


@pytest.mark.parametrize("name", ["equal", "rgb"])
@every_engine
def test_a_second_backward_pass_over_a_freed_graph_says_so(name: str, low_memory: bool) -> None:
    model = Heads()
    losses = losses_of_heads(model, 0)
    eager(name).backward(losses, model.encoder.parameters(), low_memory=low_memory)
    with refused("retain_graph"):
        eager(name).backward(losses, model.encoder.parameters(), low_memory=low_memory)


@every_balancer
@every_engine
def test_a_retained_graph_can_be_used_again(name: str, low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    by_hand, balancer = eager(name), eager(name)
    for _ in range(2):
        backward_by_hand(by_hand, losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
    losses = losses_of_heads(model, 0)
    for _ in range(2):
        balancer.backward(losses, model.encoder.parameters(), low_memory=low_memory, retain_graph=True)
    assert_same_gradients(model, twin)


@every_engine
def test_losses_made_without_a_graph_are_refused(low_memory: bool) -> None:
    model = Heads()
    with torch.no_grad():
        losses = losses_of_heads(model, 0)
    with refused("task 0"):
        mtrl.RGB(TASKS).backward(losses, model.encoder.parameters(), low_memory=low_memory)


@every_engine
def test_backward_works_where_gradients_are_disabled(low_memory: bool) -> None:
    """As `Tensor.backward` does: only the forward pass needs them enabled."""
    model = Heads()
    twin = copy.deepcopy(model)
    backward_by_hand(eager("rgb"), losses_of_heads(twin, 0), shared_of_heads(twin), twin.heads.parameters())
    losses = losses_of_heads(model, 0)
    with torch.no_grad():
        eager("rgb").backward(losses, model.encoder.parameters(), low_memory=low_memory)
    assert_same_gradients(model, twin)


def test_freezing_after_the_engine_was_made_leaves_the_frozen_part_alone_or_is_refused() -> None:
    model = Heads()
    engine = mtrl.AutogradEngine(model.encoder.parameters())
    mtrl.RGB(TASKS).backward(losses_of_heads(model, 0), engine=engine)
    model.zero_grad()
    model.encoder[0].requires_grad_(False)
    with right_or_refused("frozen", "requires_grad", "requires a gradient"):
        mtrl.RGB(TASKS).backward(losses_of_heads(model, 0), engine=engine)
        assert model.encoder[2].weight.grad is not None
    assert model.encoder[0].weight.grad is None


@every_engine
def test_freezing_between_two_calls_that_name_the_module_is_fine(low_memory: bool) -> None:
    model = Heads()
    mtrl.PCGrad(TASKS).backward(losses_of_heads(model, 0), model.encoder.parameters(), low_memory=low_memory)
    model.zero_grad()
    model.encoder[0].requires_grad_(False)
    twin = copy.deepcopy(model)
    shared = list(twin.encoder[2].parameters())
    backward_by_hand(eager("pcgrad"), losses_of_heads(twin, 0), shared, twin.heads.parameters())
    eager("pcgrad").backward(losses_of_heads(model, 0), model.encoder.parameters(), low_memory=low_memory)
    assert_same_gradients(model, twin)
