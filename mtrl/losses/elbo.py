"""ELBO task: the evidence lower bound of a video model with a stick-breaking mixture prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtrl.limits import check_number
from mtrl.losses.divergences import categorical_kl, entropy, gaussian_kl
from mtrl.losses.outputs import OutputReader, Steps
from mtrl.losses.sticks import expected_log_weights, kumaraswamy_beta_kl


@dataclass(frozen=True)
class ELBOLoss:
    r"""The terms of the negative evidence lower bound, and two regularisers.

    The model is a mixture (Jiang et al., "Variational Deep Embedding" (2017), https://arxiv.org/abs/1611.05148) with
    weights pi from broken sticks (Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197): a component c ~ pi, a
    latent z ~ N(mu_c, s_c^2), and a frame x ~ N(decode(z), sigma^2). With q(z | x) q(c | x) q(v) in place of the
    posterior, the negative bound of a frame is `recon_loss + kl_z + hierarchical_kl`, up to the constant
    C H W log(sigma sqrt(2 pi)).

    Terms, all scalars. Unless stated otherwise they are in nats per frame, as means over sequences and frames:

    * `recon_loss`: 1/2 sum |x - x'|^2/sigma^2 over channels and pixels; 0 for a perfect reconstruction.
    * `kl_z`: sum_k r_k KL(q(z | x) || component k), summed over latent dimensions; r are the responsibilities.
    * `hierarchical_kl`: sum_k KL(q(v_k) || Beta(1, alpha)) for the sticks, plus the expectation of KL(r || pi) over the
      sticks, which is sum_k r_k (log r_k - E[log pi_k]). Sticks (B, T, K - 1) belong to single frames. Sticks (K - 1,)
      belong to the whole data set, and their KL is divided by `num_frames`.
    * `attention_kl`: KL(map || prior map), summed over slots. With the uniform prior it is log(h w) minus the entropy.
    * `cluster_entropy`: the entropy of the responsibilities' mean over the batch, in nats, from 0 (one component is
      used) to log K (all components are used equally). It is the only term that a total subtracts, and so maximises.
    * `gram_enc_loss`: the mean square of the off-diagonal of the Gram matrix G of the slots, scaled to unit length,
      that is |G - I|^2/(S(S - 1)). It is 0 if the slots are orthogonal and 1 if they are parallel, and has no unit. If
      the outputs hold `teacher_patches`, it is instead the distance of the encoder from its moving average: the mean
      square of the difference between the Gram matrices of `patches` and `teacher_patches`, scaled to unit length
      (Simeoni et al. 2025, https://arxiv.org/abs/2508.10104).
    * `unrolled_loss`, if the outputs hold `unrolled`: that of `recon_loss`, for frames that the model predicted from
      its own frames. A predictive model that never sees its own mistakes in training does not correct them (Bengio et
      al. 2015, https://arxiv.org/abs/1506.03099).

    Args:
        observation_std: sigma, in the units of the observations, above 0. Default 1.0.
        concentration: alpha of the prior Beta(1, alpha) of the sticks, above 0. Default 1.0.
        num_frames: the number of frames in the data set. Default: the number of frames in the batch, B T.

    Raises:
        ValueError: an argument is out of range.
    """

    observation_std: float = 1.0
    concentration: float = 1.0
    num_frames: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_number("observation_std", self.observation_std, above=0)
        check_number("concentration", self.concentration, above=0)
        if self.num_frames is not None:
            check_number("num_frames", self.num_frames, least=1, whole=True)

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

        kl_z = mixture_kl(mean, log_variance, prior_mean, prior_log_variance, responsibilities)
        kl_sticks = kumaraswamy_beta_kl(stick_a, stick_b, self.concentration).sum(-1)  # () or (B, T)
        if kl_sticks.ndim == 0:
            kl_sticks = kl_sticks / (self.num_frames or kl_z.numel())
        kl_assignment = assignment_kl(responsibilities, expected_log_weights(stick_a, stick_b))  # (B, T)
        terms = {
            "recon_loss": self.reconstruction(reconstruction, read.observations),
            "kl_z": kl_z.mean(),
            "hierarchical_kl": kl_sticks.mean() + kl_assignment.mean(),
            "attention_kl": attention_kl(attention, prior).sum(-1).mean(),
            "cluster_entropy": entropy(responsibilities.mean((0, 1))),
            "gram_enc_loss": gram_penalty(slots).mean(),
        }
        if "teacher_patches" in read:
            patches, teacher = read("patches", "B T P F"), read("teacher_patches", "B T P F")
            terms["gram_enc_loss"] = gram_distance(patches, teacher.detach()).mean()
        if "unrolled" in read:
            unrolled = read("unrolled", "B U C H W")
            if unrolled.shape[1] >= read.sizes["T"]:
                most = f"{read.sizes['T']} frames, so it must have fewer"
                raise ValueError(f"unrolled has {unrolled.shape[1]} frames; a sequence has {most}")
            terms["unrolled_loss"] = self.reconstruction(unrolled, read.observations[:, -unrolled.shape[1] :])
        return terms

    def reconstruction(self, frames: Tensor, truth: Tensor) -> Tensor:
        """1/2 sum |x - x'|^2/sigma^2 over the last three dimensions of `truth` and `frames`, then the mean, ()."""
        return 0.5 * ((frames - truth) / self.observation_std).square().sum((-3, -2, -1)).mean()


def mixture_kl(
    mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor, responsibilities: Tensor
) -> Tensor:
    """sum_k r_k KL(N(m, s^2) || N(m_k, s_k^2)) in nats, an upper bound of the KL to the mixture with weights r.

    Args:
        mean: m (..., D).
        log_variance: log s^2 (..., D).
        prior_mean: m_k (K, D) or (..., K, D), of the components.
        prior_log_variance: log s_k^2 (K, D) or (..., K, D), of the components.
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
        attention: (..., h, w), maps with sum 1.
        prior: (..., h, w), maps with sum 1. Default: the uniform map.

    Returns:
        (...).
    """
    maps = attention.flatten(-2)
    if prior is None:
        return math.log(maps.shape[-1]) - entropy(maps)
    return categorical_kl(maps, prior.flatten(-2))


def gram_penalty(slots: Tensor) -> Tensor:
    """|G - I|^2/(S(S - 1)) with the Gram matrix G of `slots` (..., S, F), scaled to unit length; 0 for one slot."""
    unit = torch.nn.functional.normalize(slots, dim=-1, eps=1e-6)
    squares = (unit @ unit.mT).square()
    num_slots = slots.shape[-2]
    off_diagonal = squares.sum((-2, -1)) - squares.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal / max(num_slots * (num_slots - 1), 1)


def gram_distance(features: Tensor, teacher: Tensor) -> Tensor:
    """|G - G'|^2/P^2 (...) with the Gram matrices of `features` and `teacher` (..., P, F), scaled to unit length."""
    ours, theirs = (torch.nn.functional.normalize(each, dim=-1, eps=1e-6) for each in (features, teacher))
    return (ours @ ours.mT - theirs @ theirs.mT).square().mean((-2, -1))
