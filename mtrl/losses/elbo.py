"""ELBO: how well frames are rebuilt, and what it costs to say them, under a stick-breaking mixture prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtrl.losses.divergences import categorical_kl, entropy, gaussian_kl
from mtrl.losses.outputs import OutputReader, Steps
from mtrl.losses.sticks import expected_log_weights, kumaraswamy_beta_kl


@dataclass(frozen=True)
class ELBOLoss:
    r"""The terms of the negative evidence lower bound, and two regularisers.

    The model is a mixture (Jiang et al., "Variational Deep Embedding" (2017), https://arxiv.org/abs/1611.05148) whose
    weights pi come from broken sticks (Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197): a component
    c ~ pi, a latent z ~ N(mu_c, s_c^2), a frame x ~ N(decode(z), sigma^2). With q(z | x) q(c | x) q(v) in place of the
    posterior, the negative bound of a frame is `recon_loss + kl_z + hierarchical_kl`, but for the constant
    C H W log(sigma sqrt(2 pi)).

    Terms, all scalars, in nats per frame (means over sequences and frames) if not said otherwise:

    * `recon_loss`: 1/2 sum |x - x'|^2/sigma^2 over channels and pixels; 0 where they agree.
    * `kl_z`: sum_k r_k KL(q(z | x) || component k), summed over latent dimensions; r are the responsibilities.
    * `hierarchical_kl`: sum_k KL(q(v_k) || Beta(1, alpha)) for the sticks, and KL(r || pi) on average over them, which
      is sum_k r_k (log r_k - E[log pi_k]). Sticks (B, T, K - 1) are a frame's own. Sticks (K - 1,) are said once for
      the whole data set: their KL is divided by `num_frames`.
    * `attention_kl`: KL(map || prior map), summed over slots; against the uniform prior log(h w) minus the entropy.
    * `cluster_entropy`: of the responsibilities' mean over the batch, in nats, from 0 (one component does it all) to
      log K (all are used alike). To be made larger: it is the one term that a total subtracts.
    * `gram_enc_loss`: mean square of the off-diagonal of the slots' Gram matrix G, that is |G - I|^2/(S(S - 1)) with
      slots of unit length: 0 if they are orthogonal, 1 if they are parallel; no unit.

    Args:
        observation_std: sigma, in the units of the observations, above 0. Default 1.0.
        concentration: alpha of the prior Beta(1, alpha) of the sticks, above 0. Default 1.0.
        num_frames: number of frames in the data set. Default: the batch's B T.

    Raises:
        ValueError: an argument is out of range.
    """

    observation_std: float = 1.0
    concentration: float = 1.0
    num_frames: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("observation_std", "concentration"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames is {self.num_frames}; it must be at least 1")

    def __call__(self, outputs: Mapping[str, Any], observations: Steps) -> dict[str, Tensor]:
        """The terms by name, each ().

        Args:
            outputs: see `ModelOutputs`.
            observations: (B, T, C, H, W).

        Raises:
            ValueError: an output is missing or has the wrong shape.
        """
        read = OutputReader(outputs, observations)
        reconstruction = read("reconstruction", "B T C H W")
        mean, log_variance = read("latent_mean", "B T D"), read("latent_log_variance", "B T D")
        prior_mean, prior_log_variance = (read(name, "K D", "B T K D") for name in ("prior_mean", "prior_log_variance"))
        responsibilities = read("responsibilities", "B T K")
        stick_a, stick_b = (read(name, "K-1", "B T K-1") for name in ("stick_a", "stick_b"))
        slots = read("slots", "B T S F")
        attention = read("attention", "B T S h w")
        prior = read("attention_prior", "B T S h w") if "attention_prior" in read else None

        error = (reconstruction - read.observations) / self.observation_std
        kl_z = mixture_kl(mean, log_variance, prior_mean, prior_log_variance, responsibilities)
        kl_sticks = kumaraswamy_beta_kl(stick_a, stick_b, self.concentration).sum(-1)  # () or (B, T)
        if kl_sticks.ndim == 0:
            kl_sticks = kl_sticks / (self.num_frames or kl_z.numel())
        kl_assignment = assignment_kl(responsibilities, expected_log_weights(stick_a, stick_b))  # (B, T)
        return {
            "recon_loss": 0.5 * error.square().sum((-3, -2, -1)).mean(),
            "kl_z": kl_z.mean(),
            "hierarchical_kl": kl_sticks.mean() + kl_assignment.mean(),
            "attention_kl": attention_kl(attention, prior).sum(-1).mean(),
            "cluster_entropy": entropy(responsibilities.mean((0, 1))),
            "gram_enc_loss": gram_penalty(slots).mean(),
        }


def mixture_kl(
    mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor, responsibilities: Tensor
) -> Tensor:
    """sum_k r_k KL(N(m, s^2) || N(m_k, s_k^2)) in nats: no less than the KL to the mixture that r weighs.

    Args:
        mean: (..., D).
        log_variance: (..., D).
        prior_mean: (K, D) or (..., K, D), of the components.
        prior_log_variance: likewise.
        responsibilities: r (..., K).

    Returns:
        (...).
    """
    each = gaussian_kl(mean.unsqueeze(-2), log_variance.unsqueeze(-2), prior_mean, prior_log_variance)  # (..., K)
    return (responsibilities * each).sum(-1)


def assignment_kl(responsibilities: Tensor, log_weights: Tensor) -> Tensor:
    """E[KL(r || pi)] = sum_k r_k (log r_k - E[log pi_k]) in nats, at least 0.

    Args:
        responsibilities: r (..., K).
        log_weights: E[log pi] (K,) or (..., K).

    Returns:
        (...).
    """
    return -entropy(responsibilities) - (responsibilities * log_weights).sum(-1)


def attention_kl(attention: Tensor, prior: Tensor | None = None) -> Tensor:
    """KL(map || prior) over positions, in nats.

    Args:
        attention: (..., h, w), each map sums to 1.
        prior: (..., h, w), likewise. Default: uniform.

    Returns:
        (...).
    """
    maps = attention.flatten(-2)
    if prior is None:
        return math.log(maps.shape[-1]) - entropy(maps)
    return categorical_kl(maps, prior.flatten(-2))


def gram_penalty(slots: Tensor) -> Tensor:
    """|G - I|^2/(S(S - 1)) of the Gram matrix G (S, S) of slots (..., S, F) of unit length; 0 for one slot; (...)."""
    unit = torch.nn.functional.normalize(slots, dim=-1, eps=1e-6)
    squares = (unit @ unit.mT).square()
    num_slots = slots.shape[-2]
    off_diagonal = squares.sum((-2, -1)) - squares.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal / max(num_slots * (num_slots - 1), 1)
