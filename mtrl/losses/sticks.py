r"""Stick-breaking: a mixture's weights from K - 1 sticks, each with a Kumaraswamy posterior.

    pi_k = v_k prod_{j<k} (1 - v_j),   v_K = 1,   q(v_k) = Kumaraswamy(a_k, b_k),   p(v_k) = Beta(1, alpha),

so that the prior over weights is a Dirichlet process, truncated at K components (Sethuraman 1994). A Kumaraswamy
distribution takes the place of a Beta distribution because a formula gives its samples: Nalisnick and Smyth,
"Stick-Breaking Variational Autoencoders" (2017), https://arxiv.org/abs/1605.06197. Its density is
a b v^(a-1) (1 - v^a)^(b-1), and a sample is v = (1 - u^(1/b))^(1/a) with u uniform on (0, 1). All functions of this
module are differentiable in a and b and compute in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EULER_GAMMA = 0.5772156649015329
NODES = 81
NEGLIGIBLE = -40.0  # e^-40 is negligible beside 1
NEAR_ZERO = -math.log(2)


def sample_sticks(a: Tensor, b: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw v ~ Kumaraswamy(a, b), (..., K - 1), by the formula, so that gradients reach `a` and `b`.

    Args:
        a: (..., K - 1), positive.
        b: (..., K - 1), positive.
        generator: the generator of the uniform numbers. Default: PyTorch's global generator.
    """
    uniform = torch.rand(a.shape, dtype=torch.float64, device=a.device, generator=generator)
    log_q = uniform.clamp_min(torch.finfo(torch.float64).tiny).log() / b.double()
    return _log1mexp(log_q).div(a.double()).exp().to(a.dtype)


def stick_weights(sticks: Tensor) -> Tensor:
    """The mixture weights pi (..., K) of `sticks` v (..., K - 1), each in [0, 1]; they sum to 1."""
    one = torch.ones_like(sticks[..., :1])
    return torch.cat([sticks, one], -1) * torch.cat([one, (1 - sticks).cumprod(-1)], -1)


def expected_log_sticks(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""E[log v] and E[log(1 - v)] for v ~ Kumaraswamy(a, b), each of the shape of `a`.

    The first is -(gamma + digamma(b + 1))/a. The second has no closed form, and the terms of its usual series over the
    moments of v fall like m^-b, too slowly for small b. It is the integral over u in (0, 1) of

        log(1 - v) = log(1 - w^(1/a)),   w = 1 - q,   q = u^(1/b),

    which is smooth except at both ends. The tanh-sinh rule suits such functions: u = 1/(1 + exp(-pi sinh t)) at evenly
    spaced t (Takahasi and Mori 1974). With 81 nodes its relative error is below 1e-6 for a and b from 0.01 to 100.
    """
    a64, b64 = a.double().unsqueeze(-1), b.double().unsqueeze(-1)
    t = torch.linspace(-4.0, 4.0, NODES, dtype=torch.float64, device=a.device)
    logit = math.pi * t.sinh()
    log_u = torch.nn.functional.logsigmoid(logit)
    spacing = 8.0 / (NODES - 1)
    weight = spacing * math.pi * t.cosh() * (log_u + torch.nn.functional.logsigmoid(-logit)).exp()  # sums to 1

    log_q = log_u / b64  # (..., K - 1, nodes)
    log_w = _log1mexp(log_q.clamp_min(NEGLIGIBLE))
    # For negligible q, 1 - w^(1/a) is q/a; the general form would round it to 0.
    log_rest = torch.where(log_q < NEGLIGIBLE, log_q - a64.log(), _log1mexp(log_w / a64))
    log_v = -(EULER_GAMMA + torch.digamma(b.double() + 1)) / a.double()
    return log_v.to(a.dtype), (log_rest @ weight).to(a.dtype)


def expected_log_weights(a: Tensor, b: Tensor) -> Tensor:
    """E[log pi] (..., K) for sticks v ~ Kumaraswamy(a, b), (..., K - 1).

    With them, and d_k = KL(q(z | x) || component k), the best responsibilities are softmax_k(E[log pi_k] - d_k).
    """
    log_v, log_rest = expected_log_sticks(a, b)
    nothing = torch.zeros_like(log_v[..., :1])
    return torch.cat([log_v, nothing], -1) + torch.cat([nothing, log_rest.cumsum(-1)], -1)


def kumaraswamy_beta_kl(
    a: Tensor, b: Tensor, concentration: float | Tensor = 1.0, log_concentration: Tensor | None = None
) -> Tensor:
    """KL(Kumaraswamy(a, b) || Beta(1, alpha)) in nats, of the shape of `a`.

        log(a b) + (a - 1) E[log v] - (b - 1)/b - log alpha - (alpha - 1) E[log(1 - v)],

    which is 0 for a = 1 and b = alpha, where the two distributions are equal. It is equation 12 of Nalisnick and Smyth
    (2017) for this prior.

    Args:
        a: positive.
        b: positive, of the same shape.
        concentration: alpha, positive; the expected number of components in use grows with it. A tensor broadcasts
            with `a`. Default 1.0.
        log_concentration: log alpha, a tensor that broadcasts with `a`. Give E[alpha] and E[log alpha] for the
            expectation of the KL under a distribution of alpha. Default: the logarithm of `concentration`.
    """
    log_v, log_rest = expected_log_sticks(a, b)
    own = (a * b).log() + (a - 1) * log_v - (b - 1) / b
    if log_concentration is not None:
        own = own - log_concentration
    else:
        own = own - (concentration.log() if isinstance(concentration, Tensor) else math.log(concentration))
    return own - (concentration - 1) * log_rest


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact at both ends."""
    near_zero = x > NEAR_ZERO
    return torch.where(near_zero, (-x.expm1()).log(), torch.log1p(-x.clamp_max(NEAR_ZERO).exp()))
