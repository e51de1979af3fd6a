"""GradNorm's weights with PCGrad's directions: what each would do in turn, on full gradients."""

import copy
import math
from typing import Any

import pytest
import torch

from mtrl.balancers import GradNorm, GradNormPCGrad, PCGrad
from mtrl.gradients import TaskGradients

GRADNORM: dict[str, Any] = {"warmup_steps": 3, "lr": 0.1, "alpha": 1.0}


def test_it_is_pcgrad_on_the_rows_that_gradnorm_weighs() -> None:
    both = GradNormPCGrad(4, **GRADNORM, seed=7)
    gradnorm, pcgrad = GradNorm(4, **GRADNORM), PCGrad(4, seed=7)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        jacobian = torch.randn(4, 20, generator=generator, dtype=torch.float64) * torch.tensor([[0.1], [1], [2], [5]])
        losses = torch.rand(4, generator=generator, dtype=torch.float64)
        gradients = TaskGradients(jacobian, slice(5, 15))  # GradNorm measures on the last shared layer
        magnitudes = gradnorm(gradients, losses)
        weighted = magnitudes.coefficients[:, None] * jacobian
        directions = pcgrad(TaskGradients(weighted), losses)
        answer = both(gradients, losses)
        expected = directions.coefficients @ weighted
        assert (answer.update(gradients) - expected).norm() <= 1e-9 * expected.norm()
        shown = answer.diagnostics
        assert torch.equal(shown["weight"], answer.coefficients)
        assert torch.equal(shown["gradnorm_weight"], magnitudes.coefficients)
        assert torch.equal(shown["conflicts"], directions.diagnostics["conflicts"])
        torch.testing.assert_close(shown["cosine"], directions.diagnostics["cosine"])
        assert {*magnitudes.diagnostics, *directions.diagnostics} <= {*shown}
    assert shown["gradnorm_weight"].std() > 0.1
    assert shown["conflicts"].sum() > 0


def test_weights_change_what_counts_as_large_and_not_what_conflicts() -> None:
    both = GradNormPCGrad(2, **GRADNORM)
    both.gradnorm.weights.copy_(torch.tensor([0.5, 1.5]))
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    # w_a a = (.5, 0) and w_b b = (-1.5, 1.5); without each other's direction: (.25, .25) and (0, 1.5).
    update = both.combine(torch.stack((a, b)), torch.ones(2))
    torch.testing.assert_close(update, torch.tensor([0.25, 1.75]))


def test_arguments_and_returns_reach_gradnorm() -> None:
    both = GradNormPCGrad(2, progress="return", return_range=(0.0, 100.0), warmup_steps=1)
    assert not both.needs_positive_losses
    assert GradNormPCGrad(2).needs_positive_losses
    both.record_returns(torch.tensor([0.0, 90.0]))
    assert both.gradnorm.returns.tolist() == [0, 90]
    both.reset()
    assert all(map(math.isnan, both.gradnorm.returns.tolist()))
    with pytest.raises(ValueError, match=r"^alpha is -1; it must be between 0 and 100"):
        GradNormPCGrad(2, alpha=-1)
    with pytest.raises(ValueError, match=r"^seed is -1; it must be at least 0"):
        GradNormPCGrad(2, seed=-1)


def test_reset_restarts_both() -> None:
    both = GradNormPCGrad(4, **GRADNORM)
    fresh = copy.deepcopy(both)
    for _ in range(5):
        both.combine(torch.randn(4, 10), torch.rand(4))
    both.reset()
    jacobian, losses = torch.randn(4, 10), torch.rand(4)
    assert torch.equal(both.combine(jacobian, losses), fresh.combine(jacobian, losses))
