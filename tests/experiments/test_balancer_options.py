"""Options of balancers: words and mappings become arguments of the right types, and mistakes become one line."""

import math

import pytest

from experiments.program.balancer_options import balancer_from, options_from_words
from experiments.program.flags import UsageError
from mtrl import AIM, RGB, GradNorm


def test_words_and_mappings_give_the_same_balancer():
    words = ["alpha=0.5", "warmup_steps=1e1", "progress=return", "return_range=(-1,2)"]
    mapping = {"alpha": 0.5, "warmup_steps": 10.0, "progress": "return", "return_range": [-1, 2]}
    for options in (words, mapping):
        balancer = balancer_from("gradnorm", 3, options)
        assert isinstance(balancer, GradNorm)
        assert balancer.alpha == 0.5
        assert balancer.warmup_steps == 10
        assert isinstance(balancer.warmup_steps, int)


def test_without_options_the_defaults_hold():
    assert balancer_from("gradnorm", 3).alpha == GradNorm(3).alpha
    assert isinstance(balancer_from("aim", 2, {}), AIM)


@pytest.mark.parametrize("word", ["True", "true"])
def test_truth_values_and_none(word):
    assert balancer_from("rgb", 5, [f"invariant_steps={word}"]).invariant_steps is True
    assert isinstance(balancer_from("rgb", 5, ["invariant_steps=None"]), RGB)


def test_a_value_that_is_no_literal_is_a_string():
    assert options_from_words(["a=b", "c=[1, 2]", "d=x=y", "e="]) == {"a": "b", "c": [1, 2], "d": "x=y", "e": ""}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gradnrm", [], "unknown balancer 'gradnrm'; balancers are equal, gradnorm"),
        ("gradnrm", ["alpha=1"], "unknown balancer 'gradnrm'; balancers are equal, gradnorm"),
        ("gradnorm", ["alhpa=1"], "balancer 'gradnorm' has no argument 'alhpa'; did you mean 'alpha'?"),
        ("gradnorm", ["zzz=1"], "balancer 'gradnorm' has no argument 'zzz'; it has alpha, lr, "),
        ("gradnorm", ["num_tasks=1"], "balancer 'gradnorm' has no argument 'num_tasks'; it has alpha"),
        ("gradnorm", ["alpha"], "balancer option 'alpha' is not of the form name=value"),
        ("gradnorm", ["alpha=abc"], "alpha is 'abc'; it must be a number, between 0 and 100"),
        ("gradnorm", {"alpha": math.nan}, "alpha is nan; it must be between 0 and 100"),
        ("gradnorm", ["alpha=-1"], "alpha is -1; it must be between 0 and 100"),
        ("gradnorm", ["warmup_steps=1.5"], "warmup_steps is 1.5; it must be an integer, at least 1"),
        ("gradnorm", ["return_range=3"], "return_range is 3; progress='return' needs"),
        ("rgb", ["invariant_steps=7"], "invariant_steps is 7; it must be true or false"),
        ("rgb", ["magnitude=7"], "unknown magnitude 7; choose from unit"),
    ],
)
def test_mistakes_are_one_line(name, options, message):
    with pytest.raises(UsageError) as error:
        balancer_from(name, 3, options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_torchjd_checks_its_own_arguments():
    pytest.importorskip("torchjd")
    assert balancer_from("torchjd:CAGrad", 2, ["c=0.4"]).aggregator == "CAGrad"
    with pytest.raises(UsageError, match="has no argument 'x'; it has c"):
        balancer_from("torchjd:CAGrad", 2, ["x=1"])
