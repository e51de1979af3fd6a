"""PCGrad against TorchJD's, which draws its own orders: the two agree on average over orders."""

import pytest
import torch

from mtrl import PCGrad, make_balancer

DRAWS = 1500


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_update_over_orders_is_torchjds(seed):
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    jacobian -= jacobian.mean(0)  # rows that sum to zero conflict
    losses = torch.ones(4, dtype=torch.float64)
    means, errors = [], []
    for balancer in (PCGrad(4, seed=seed), make_balancer("torchjd:PCGrad", 4, seed=seed)):
        updates = torch.stack([balancer.combine(jacobian, losses) for _ in range(DRAWS)])
        means.append(updates.mean(0))
        errors.append(updates.std(0) / DRAWS**0.5)
    assert errors[0].max() > 0  # orders matter for these rows
    difference, error = (means[0] - means[1]).abs(), (errors[0] ** 2 + errors[1] ** 2).sqrt()
    assert (difference <= 5 * error + 1e-12).all()


def test_two_tasks_have_one_order_and_agree_exactly():
    jacobian = torch.tensor([[1.0, 0.5, 0.0], [-1.0, 1.0, 2.0]], dtype=torch.float64)
    losses = torch.ones(2, dtype=torch.float64)
    mine, theirs = PCGrad(2).combine(jacobian, losses), make_balancer("torchjd:PCGrad", 2).combine(jacobian, losses)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
