"""`torch.compile`: of the encoder, of the whole model, and of the function that makes the losses.

A compiled function is one node of the graph: what each of its outputs depends on can't be seen from outside.
"""

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mtrl
from tests.outside.reference import (
    TASKS,
    Heads,
    assert_same_gradients,
    backward_by_hand,
    batch,
    eager,
    every_engine,
    right_or_refused,
    shared_of_heads,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch._dynamo's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
inductor = pytest.param(
    "inductor",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"),
    ],
)
every_backend = pytest.mark.parametrize("backend", ["eager", "aot_eager", inductor])


def compare(losses: Callable[[Heads, Tensor], Any], name: str, low_memory: bool, given: bool) -> None:
    """One call against the reference, in which nothing is compiled."""
    model = Heads()
    twin = copy.deepcopy(model)
    backward_by_hand(eager(name), list(twin(batch())), shared_of_heads(twin), twin.heads.parameters())
    eager(name).backward(losses(model, batch()), model.encoder.parameters() if given else None, low_memory=low_memory)
    assert_same_gradients(model, twin)


@every_backend
@every_engine
def test_a_compiled_encoder(backend: str, low_memory: bool) -> None:
    def losses(model: Heads, x: Tensor) -> list[Tensor]:
        compiled: Any = torch.compile(model.encoder, backend=backend)
        return model.losses_of(compiled(x))

    compare(losses, "pcgrad", low_memory, given=False)
    compare(losses, "rgb", low_memory, given=True)


@every_backend
@every_engine
def test_a_compiled_model_whose_parameters_are_given(backend: str, low_memory: bool) -> None:
    for name in ("pcgrad", "rgb"):
        compare(lambda model, x: list(torch.compile(model, backend=backend)(x)), name, low_memory, True)


@every_backend
@every_engine
def test_a_compiled_model_finds_what_is_shared_or_asks(backend: str, low_memory: bool) -> None:
    with right_or_refused("parameters"):
        compare(lambda model, x: list(torch.compile(model, backend=backend)(x)), "rgb", low_memory, False)
    with right_or_refused("parameters"):
        compare(
            lambda model, x: torch.compile(lambda y: torch.stack(model(y)), backend=backend)(x),
            "rgb",
            low_memory,
            False,
        )


@every_engine
def test_the_parameters_of_a_compiled_module_are_those_of_the_module(low_memory: bool) -> None:
    model = Heads()
    twin = copy.deepcopy(model)
    compiled: Any = torch.compile(model, backend="eager")
    backward_by_hand(eager("rgb"), list(twin(batch())), shared_of_heads(twin), twin.heads.parameters())
    eager("rgb").backward(list(compiled(batch())), compiled.encoder, low_memory=low_memory)
    assert_same_gradients(model, twin)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_training_step_that_is_compiled_as_a_whole_balances_or_breaks_the_graph() -> None:
    """Dynamo may not trace through the balancer, but what comes out is the same."""
    model = Heads()
    twin = copy.deepcopy(model)
    balancer = mtrl.PCGrad(TASKS)

    def step(x: Tensor) -> None:
        balancer.backward(list(model(x)), model.encoder.parameters())

    backward_by_hand(eager("pcgrad"), list(twin(batch())), shared_of_heads(twin), twin.heads.parameters())
    torch.compile(step, backend="eager")(batch())
    assert_same_gradients(model, twin)
