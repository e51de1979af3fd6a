"""Divergences and broken sticks against torch.distributions, quadrature and Monte Carlo."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Beta, Categorical, Kumaraswamy, Normal, kl_divergence

from mtrl.losses import (
    assignment_kl,
    categorical_kl,
    entropy,
    expected_log_sticks,
    expected_log_weights,
    gaussian_kl,
    kumaraswamy_beta_kl,
    mixture_kl,
    sample_sticks,
    stick_weights,
)

DRAWS = 200_000
STICKS = [(1.0, 1.0), (2.0, 3.0), (0.5, 0.7), (5.0, 1.5), (1.3, 8.0), (0.3, 0.3), (10.0, 0.5)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simplex(*shape: int, seed: int = 0) -> Tensor:
    return (2 * randn(*shape, seed=seed)).softmax(-1)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def assert_mean(samples: Tensor, expected: Tensor) -> None:
    """The mean of `samples` (N, ...) is `expected` (...), within five standard errors."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() < 5 * error + 1e-12).all()


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_kl_is_that_of_torch(seed):
    m, s, m2, s2 = (randn(4, 3, 5, seed=10 * seed + i) for i in range(4))
    p, q = Normal(m, (s / 2).exp()), Normal(m2, (s2 / 2).exp())
    torch.testing.assert_close(gaussian_kl(m, s, m2, s2), kl_divergence(p, q).sum(-1))
    assert (gaussian_kl(m, s, m, s) == 0).all()
    assert gradcheck(gaussian_kl, [x[0].clone().requires_grad_() for x in (m, s, m2, s2)])


def test_mixture_kl_weighs_the_components_and_bounds_the_mixture():
    m, s, means, log_variances = randn(5), randn(5, seed=1), randn(3, 5, seed=2), randn(3, 5, seed=3)
    for k in range(3):
        one_hot = torch.eye(3, dtype=torch.float64)[k]
        alone = gaussian_kl(m, s, means[k], log_variances[k])
        torch.testing.assert_close(mixture_kl(m, s, means, log_variances, one_hot), alone)

    weights = simplex(3, seed=4)
    q = Normal(m, (s / 2).exp())
    torch.manual_seed(0)
    z = q.sample((DRAWS,))
    components = Normal(means, (log_variances / 2).exp()).log_prob(z.unsqueeze(1)).sum(-1)  # (N, K)
    exact = (q.log_prob(z).sum(-1) - (components + weights.log()).logsumexp(-1)).mean()
    distances = gaussian_kl(m, s, means, log_variances)
    best = (weights.log() - distances).softmax(-1)
    bounds = [
        mixture_kl(m, s, means, log_variances, r) + assignment_kl(r, weights.log()) for r in (best, weights, simplex(3))
    ]
    assert exact - 0.02 < bounds[0]
    assert bounds[0] < bounds[1]
    assert bounds[0] < bounds[2]

    order = torch.tensor([2, 0, 1])
    mixed = mixture_kl(m, s, means[order], log_variances[order], best[order])
    torch.testing.assert_close(mixed, mixture_kl(m, s, means, log_variances, best))


def test_mixture_components_may_differ_from_frame_to_frame():
    m, s, r = randn(2, 4, 5), randn(2, 4, 5, seed=1), simplex(2, 4, 3)
    means, log_variances = randn(2, 4, 3, 5, seed=2), randn(2, 4, 3, 5, seed=3)
    got = mixture_kl(m, s, means, log_variances, r)
    assert got.shape == (2, 4)
    alone = mixture_kl(m[1, 2], s[1, 2], means[1, 2], log_variances[1, 2], r[1, 2])
    torch.testing.assert_close(got[1, 2], alone)


def test_categorical_kl_and_entropy_are_those_of_torch():
    p, q = simplex(4, 6), simplex(4, 6, seed=1)
    expected = kl_divergence(Categorical(p), Categorical(q))
    torch.testing.assert_close(categorical_kl(p, q), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(entropy(p), Categorical(p).entropy(), rtol=1e-8, atol=1e-10)
    assert (categorical_kl(p, p) == 0).all()
    assert entropy(torch.full((7,), 1 / 7)).item() == pytest.approx(math.log(7))
    inputs = p.clone().requires_grad_(), q.clone().requires_grad_()
    assert gradcheck(categorical_kl, inputs)
    assert gradcheck(entropy, inputs[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_zero_and_one_are_harmless(dtype):
    p = torch.eye(3, dtype=dtype).requires_grad_()
    q = torch.eye(3, dtype=dtype).roll(1, 0).requires_grad_()
    divergences = categorical_kl(p, q)
    assert divergences.tolist() == pytest.approx([-math.log(1e-12)] * 3)
    (divergences.sum() + entropy(p).sum() + assignment_kl(p, q).sum()).backward()
    assert p.grad.isfinite().all()
    assert q.grad.isfinite().all()
    assert entropy(p).abs().max() < 1e-10


@pytest.mark.parametrize("extreme", [-1e4, -50.0, 50.0, 1e4])
def test_extreme_log_variances_are_harmless(extreme):
    own = torch.full((2, 3), extreme, requires_grad=True)
    other = torch.zeros(2, 3, requires_grad=True)
    mean = torch.randn(2, 3, requires_grad=True)
    (gaussian_kl(mean, own, mean.detach() + 1, other) + gaussian_kl(mean.detach(), other, mean, own)).sum().backward()
    assert all(x.grad.isfinite().all() for x in (own, other, mean))


def log_rest(a: float, b: float) -> float:
    """E[log(1 - v)] by adaptive quadrature over s = -log(1 - v^a), which is exponential with rate b."""

    def integrand(s: float) -> float:
        q = math.exp(-s)
        tail = math.log(-math.expm1(math.log1p(-q) / a)) if s < 36 else -s - math.log(a)
        return b * math.exp(-b * s) * tail

    ends = [0, 1e-8, 1e-4, 1e-2, 0.1, 1, 5, 20, 36, 36 + 10 / b, 36 + 50 / b, 36 + 800 / b]
    parts = (
        integrate.quad(integrand, low, high, epsabs=1e-13, epsrel=1e-11, limit=500)[0] for low, high in pairwise(ends)
    )
    return sum(parts)


@pytest.mark.parametrize("a", [0.01, 0.3, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("b", [0.01, 0.3, 1.0, 4.0, 100.0])
def test_expected_log_sticks_are_their_integrals(a, b):
    _, log_one_less = expected_log_sticks(numbers(a), numbers(b))
    assert log_one_less.item() == pytest.approx(log_rest(a, b), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("a", "b"), STICKS)
def test_samples_have_the_distribution_and_the_expected_logarithms(a, b):
    v = sample_sticks(*(torch.full((DRAWS,), x, dtype=torch.float64) for x in (a, b)), torch.Generator().manual_seed(1))
    assert stats.kstest(v[:5000].numpy(), lambda x: 1 - (1 - x**a) ** b).pvalue > 1e-3
    log_v, log_one_less = expected_log_sticks(numbers(a), numbers(b))
    assert_mean(v.log(), log_v.squeeze())
    inside = v < 1  # for small b some draws are 1 to the last digit
    if inside.all():
        assert_mean(torch.log1p(-v), log_one_less.squeeze())


def test_samples_carry_gradients():
    def draw(a: Tensor, b: Tensor) -> Tensor:
        return sample_sticks(a, b, torch.Generator().manual_seed(0))

    assert gradcheck(draw, (numbers(0.7, 2.0, 5.0), numbers(3.0, 0.8, 1.0)))


@pytest.mark.parametrize(("a", "b"), STICKS)
@pytest.mark.parametrize("concentration", [0.5, 1.0, 5.0])
def test_kumaraswamy_beta_kl_is_the_mean_log_ratio(a, b, concentration):
    torch.manual_seed(2)
    p, q = Beta(1.0, concentration, validate_args=False), Kumaraswamy(a, b, validate_args=False)
    v = sample_sticks(*(torch.full((DRAWS,), x, dtype=torch.float64) for x in (a, b)))
    v = v.clamp(1e-15, 1 - 1e-15)
    kl = kumaraswamy_beta_kl(numbers(a), numbers(b), concentration).squeeze()
    if b >= 0.5:  # below, too much of the distribution is within rounding of 1 for samples to tell
        log_q = math.log(a * b) + (a - 1) * v.log() + (b - 1) * torch.log1p(-(v**a))
        assert_mean(log_q - p.log_prob(v), kl)
        torch.testing.assert_close(log_q[:100].float(), q.log_prob(v[:100].float()), rtol=1e-2, atol=1e-2)
    assert kl >= 0


@pytest.mark.parametrize("b", [0.05, 0.5, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("concentration", [0.3, 1.0, 7.0])
def test_kumaraswamy_with_a_of_one_is_a_beta(b, concentration):
    expected = kl_divergence(Beta(1.0, numbers(b)), Beta(1.0, torch.tensor(concentration, dtype=torch.float64)))
    torch.testing.assert_close(kumaraswamy_beta_kl(numbers(1.0), numbers(b), concentration), expected)


def test_kumaraswamy_beta_kl_is_zero_and_flat_where_the_two_agree():
    a, b = numbers(1.0), numbers(2.5)
    kl = kumaraswamy_beta_kl(a, b, 2.5).sum()
    kl.backward()
    assert abs(kl.item()) < 1e-9
    assert abs(a.grad.item()) < 1e-6
    assert abs(b.grad.item()) < 1e-6


def test_sticks_pass_gradcheck():
    a, b = numbers(0.4, 1.0, 6.0), numbers(0.2, 3.0, 1.5)
    assert gradcheck(expected_log_sticks, (a, b))
    assert gradcheck(lambda a, b: kumaraswamy_beta_kl(a, b, 2.0), (a, b))
    assert gradcheck(expected_log_weights, (a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_sticks_are_harmless(dtype):
    values = torch.tensor([1e-3, 1e-2, 1.0, 1e2, 1e4], dtype=dtype)
    a, b = (grid.flatten().requires_grad_() for grid in torch.meshgrid(values, values, indexing="ij"))
    kl = kumaraswamy_beta_kl(a, b, 3.0)
    assert kl.dtype is dtype
    assert kl.isfinite().all()
    (kl.sum() + expected_log_weights(a, b).sum()).backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_stick_weights_are_a_distribution_with_the_expected_logarithms():
    a, b = numbers(1.0, 2.0, 0.8), numbers(2.0, 1.0, 1.5)
    v = sample_sticks(a.detach().expand(DRAWS, -1), b.detach().expand(DRAWS, -1), torch.Generator().manual_seed(3))
    weights = stick_weights(v)
    assert weights.shape == (DRAWS, 4)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(DRAWS, dtype=torch.float64))
    expected = expected_log_weights(a, b)
    assert_mean(weights.log(), expected)
    assert expected.exp().sum() < 1  # Jensen
    assert stick_weights(torch.tensor([1.0, 0.3])).tolist() == [1, 0, 0]


def test_assignment_kl_is_the_mean_kl_to_the_weights():
    a, b, r = numbers(1.0, 2.0, 0.8), numbers(2.0, 1.0, 1.5), simplex(4)
    v = sample_sticks(a.detach().expand(DRAWS, -1), b.detach().expand(DRAWS, -1), torch.Generator().manual_seed(4))
    divergences = kl_divergence(Categorical(r.expand(DRAWS, -1)), Categorical(stick_weights(v)))
    assert_mean(divergences, assignment_kl(r, expected_log_weights(a, b)))
