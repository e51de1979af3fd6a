"""Divergences between distributions, in nats. All functions keep the leading dimensions of their arguments."""

from __future__ import annotations

import math

from torch import Tensor

FLOOR = 1e-12  # is added to a probability before its logarithm is taken, so that the gradient at 0 stays finite
LOG_VARIANCE = 30.0  # log-variances are clamped to [-30, 30]


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(m, s^2) || N(m', s'^2)) = sum_d 1/2 (s^2/s'^2 + (m - m')^2/s'^2 - 1 - log(s^2/s'^2)), in nats.

    Appendix B of Kingma and Welling, "Auto-Encoding Variational Bayes" (2013), https://arxiv.org/abs/1312.6114, for
    any second Gaussian.

    Args:
        mean: m (..., D), of the first Gaussian.
        log_variance: log s^2 (..., D), clamped to [-30, 30]: outside this range its gradient is 0.
        other_mean: m' (..., D), of the second Gaussian; the shapes broadcast.
        other_log_variance: log s'^2 (..., D), clamped to [-30, 30].

    Returns:
        (...), summed over D.
    """
    own = log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)
    other = other_log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)
    ratio = own - other
    # If the variances agree, expm1(x) - x is exactly 0, but e^x - 1 - x is not.
    return 0.5 * (ratio.expm1() - ratio + (mean - other_mean).square() * (-other).exp()).sum(-1)


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum_k p_k log(p_k / q_k), in nats. Where q_k is 0, log(1/q_k) counts as 27.6.

    Args:
        p: (..., K), non-negative, with sum 1 over K.
        q: (..., K), non-negative, with sum 1 over K.

    Returns:
        (...).
    """
    return (p * ((p + FLOOR).log() - (q + FLOOR).log())).sum(-1)


def entropy(p: Tensor) -> Tensor:
    """H(p) = -sum_k p_k log p_k of `p` (..., K), in nats, from 0 to log K; (...)."""
    return -(p * (p + FLOOR).log()).sum(-1)


def gamma_kl(shape: Tensor, rate: Tensor, other_shape: float = 1.0, other_rate: float = 1.0) -> Tensor:
    """KL(Gamma(c, r) || Gamma(c', r')) in nats, of the shape of `shape`.

        (c - c') digamma(c) - log Gamma(c) + log Gamma(c') + c' (log r - log r') + c (r' - r)/r

    Args:
        shape: c, positive.
        rate: r, positive.
        other_shape: c', positive. Default 1.0.
        other_rate: r', positive. Default 1.0.
    """
    of_shapes = (shape - other_shape) * shape.digamma() - shape.lgamma() + math.lgamma(other_shape)
    return of_shapes + other_shape * (rate.log() - math.log(other_rate)) + shape * (other_rate - rate) / rate
