"""States from files: the form that they must have."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from mtrl.states import PCG64, AtLeast, Each, Like, Number, Whole, check_adam, check_form

GENERATOR = np.random.default_rng(0).bit_generator.state

GOOD: tuple[tuple[Any, Any], ...] = (
    (3, Whole()),
    (math.nan, Number()),
    (0.5, Number(0, 1)),
    ([1, 2], Each(Whole())),
    (("a", "b"), Each(str, tuple)),
    ({"a": 1}, Each(int, dict)),
    ({"r": 1.0, "more": object()}, AtLeast(r=Number())),
    (torch.ones(2), torch.zeros(2)),
    (np.ones((7, 2)), Like(np.zeros((0, 2)), rows=True)),
    (torch.tensor([math.inf]), Like(torch.zeros(1), least=0, finite=False)),
    (GENERATOR, PCG64),
    ("same", "same"),
)
BAD: tuple[tuple[Any, Any], ...] = (
    (-1, Whole()),
    (True, Whole()),
    (2**63, Whole()),
    (math.nan, Number(0)),
    (10**400, Number()),
    ("1", Number()),
    ([1, -2], Each(Whole())),
    ((1,), Each(Whole())),
    ({1: 1}, Each(int, dict)),
    ({}, AtLeast(r=Number())),
    ({"a": 1, "b": 1}, {"a": int}),
    ([1, 2], [int]),
    (torch.ones(3), torch.zeros(2)),
    (torch.ones(2).double(), torch.zeros(2)),
    (np.ones(2, np.float32), torch.zeros(2)),
    (torch.tensor([math.nan]), Like(torch.zeros(1), least=0, finite=False)),
    (torch.tensor([math.inf]), torch.zeros(1)),
    ({**GENERATOR, "uinteger": 2**32}, PCG64),
    (1, True),
    ("other", "same"),
)


@pytest.mark.parametrize(("value", "form"), GOOD)
def test_a_value_of_the_form_is_taken(value: Any, form: Any) -> None:
    check_form("it", value, form)


@pytest.mark.parametrize(("value", "form"), BAD)
def test_a_value_of_another_form_is_refused_in_one_line(value: Any, form: Any) -> None:
    with pytest.raises(ValueError, match=r"^it[^\n]{,200}$"):
        check_form("it", value, form)


def test_an_optimizer_goes_on_from_its_own_state_alone() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer, fresh = (torch.optim.Adam([weight], rate) for rate in (0.1, 0.2))
    weight.grad = torch.ones(2)
    optimizer.step()
    good = optimizer.state_dict()
    check_adam("it", good, fresh)
    moments = good["state"][0]
    for other in (
        {},
        {1: moments},
        {0: {**moments, "exp_avg": torch.ones(3)}},
        {0: {**moments, "exp_avg_sq": -torch.ones(2)}},
    ):
        with pytest.raises(ValueError, match=r"^it"):
            check_adam("it", {**good, "state": other}, fresh)
    with pytest.raises(ValueError, match="eps"):
        check_adam("it", good, torch.optim.Adam([weight], 0.1, eps=1e-3))
