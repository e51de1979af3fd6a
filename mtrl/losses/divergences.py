"""Divergences between distributions, in nats; leading dimensions are kept."""

from __future__ import annotations

from torch import Tensor

FLOOR = 1e-12  # added within logarithms of probabilities: 0 counts as this, and its gradient stays finite
LOG_VARIANCE = 30.0  # log-variances are held within [-30, 30]


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(m, s^2) || N(m', s'^2)) = sum_d 1/2 (s^2/s'^2 + (m - m')^2/s'^2 - 1 - log(s^2/s'^2)), in nats.

    Appendix B of Kingma and Welling, "Auto-Encoding Variational Bayes" (2013), https://arxiv.org/abs/1312.6114, for
    any second Gaussian.

    Args:
        mean: (..., D), of the first.
        log_variance: (..., D), held within [-30, 30]: outside, the gradient with respect to it is 0.
        other_mean: (..., D), of the second; the shapes broadcast.
        other_log_variance: (..., D).

    Returns:
        (...), summed over D.
    """
    own = log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)
    other = other_log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)
    ratio = own - other
    # expm1(x) - x is 0 to the last digit where the variances agree; e^x - 1 - x would not be.
    return 0.5 * (ratio.expm1() - ratio + (mean - other_mean).square() * (-other).exp()).sum(-1)


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum_k p_k log(p_k / q_k), in nats, at most -log(1e-12) = 27.6 for what q excludes.

    Args:
        p: (..., K), non-negative, sums to 1 over K.
        q: (..., K), likewise.

    Returns:
        (...).
    """
    return (p * ((p + FLOOR).log() - (q + FLOOR).log())).sum(-1)


def entropy(p: Tensor) -> Tensor:
    """H(p) = -sum_k p_k log p_k of `p` (..., K), in nats, from 0 to log K; (...)."""
    return -(p * (p + FLOOR).log()).sum(-1)
