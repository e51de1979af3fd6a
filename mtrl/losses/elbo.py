"""ELBO task: the evidence lower bound of a video model with a stick-breaking mixture prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mtrl.limits import check_choice, check_number
from mtrl.losses.divergences import FLOOR, LOG_VARIANCE, categorical_kl, entropy, gamma_kl, gaussian_kl
from mtrl.losses.gram import gram_distance, gram_penalty
from mtrl.losses.outputs import OutputReader, Steps
from mtrl.losses.sticks import expected_log_weights, kumaraswamy_beta_kl

LatentKL = Literal["bound", "sampled"]
ClusterEntropy = Literal["usage", "two_parts"]
Gram = Literal["orthogonal", "teacher"]


@dataclass(frozen=True)
class ELBOLoss:
    r"""The terms of the negative evidence lower bound, and two regularisers.

    The model is a mixture (Jiang et al., "Variational Deep Embedding" (2017), https://arxiv.org/abs/1611.05148) with
    weights pi from broken sticks (Nalisnick and Smyth 2017, https://arxiv.org/abs/1605.06197): a component c ~ pi, a
    latent z ~ N(mu_c, s_c^2), and a frame x ~ N(decode(z), sigma^2). With q(z | x) q(c | x) q(v) in place of the
    posterior, the negative bound of a frame is `recon_loss + kl_z + hierarchical_kl`, up to the constant
    C H W log(sigma sqrt(2 pi)).

    Terms, all scalars. Unless stated otherwise they are in nats per frame, as means over sequences and frames:

    * `recon_loss`: 1/2 sum |x - x'|^2/sigma^2 over channels and pixels; 0 for a perfect reconstruction. If the outputs
      hold `reconstruction_nll`, it is their mean.
    * `kl_z`: sum_k r_k KL(q(z | x) || component k), summed over latent dimensions; r are the responsibilities. With
      `latent_kl="sampled"` it is the KL to the mixture itself, by samples, which may come out below 0.
    * `hierarchical_kl`: sum_k KL(q(v_k) || Beta(1, alpha)) for the sticks, plus the expectation of KL(r || pi) over the
      sticks, which is sum_k r_k (log r_k - E[log pi_k]). Sticks (B, T, K - 1) belong to single frames. Sticks (K - 1,)
      belong to the whole data set, and their KL is divided by `num_frames`. If the outputs hold a Gamma posterior of
      alpha, the first KL is its expectation, and KL(q(alpha) || Gamma(1, 1)) is added.
    * `attention_kl`: KL(map || prior map), summed over slots. With the uniform prior it is log(h w) minus the entropy.
    * `cluster_entropy`: the entropy of the responsibilities' mean over the batch, in nats, from 0 (one component is
      used) to log K (all components are used equally). It is the only term that a total subtracts, and so maximises.
      With `cluster_entropy="two_parts"` it is the mean entropy of the frames' responsibilities plus that of their
      mixing weights, from 0 to 2 log K.
    * `gram_enc_loss`: the mean square of the off-diagonal of the Gram matrix G of the slots, scaled to unit length,
      that is |G - I|^2/(S(S - 1)). It is 0 if the slots are orthogonal and 1 if they are parallel, and has no unit.
      With `gram="teacher"` it is `gram_distance` between the encoder's features and a teacher's.
    * `unrolled_loss`, if the outputs hold `unrolled`: that of `recon_loss`, for frames that the model predicted from
      its own frames. A predictive model that never sees its own mistakes in training does not correct them (Bengio et
      al. 2015, https://arxiv.org/abs/1506.03099).

    Args:
        observation_std: sigma, in the units of the observations, above 0. Default 1.0.
        concentration: alpha of the prior Beta(1, alpha) of the sticks, above 0. Default 1.0.
        num_frames: the number of frames in the data set. Default: the number of frames in the batch, B T.
        latent_kl: `"bound"`, the closed form by responsibilities, or `"sampled"`, by `kl_samples` latents of each
            frame, drawn from PyTorch's global generator. Default `"bound"`.
        kl_samples: the number of those samples, at least 1. Default 10.
        assignments: whether `hierarchical_kl` has the KL of the responsibilities. Where `kl_z` is sampled, the mixture
            holds the weights already, and the bound needs no such term. Default True.
        cluster_entropy: `"usage"` or `"two_parts"`. Default `"usage"`.
        gram: `"orthogonal"` or `"teacher"`. Default `"orthogonal"`.

    Raises:
        ValueError: an argument is out of range.
    """

    observation_std: float = 1.0
    concentration: float = 1.0
    num_frames: int | None = None
    latent_kl: LatentKL = "bound"
    kl_samples: int = 10
    assignments: bool = True
    cluster_entropy: ClusterEntropy = "usage"
    gram: Gram = "orthogonal"

    def __post_init__(self) -> None:
        """Check the ranges and the choices."""
        check_number("observation_std", self.observation_std, above=0)
        check_number("concentration", self.concentration, above=0)
        check_number("kl_samples", self.kl_samples, least=1, whole=True)
        check_choice("latent_kl", self.latent_kl, get_args(LatentKL))
        check_choice("cluster_entropy", self.cluster_entropy, get_args(ClusterEntropy))
        check_choice("gram", self.gram, get_args(Gram))
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
        terms = {
            "recon_loss": self._reconstruction(read),
            "kl_z": self._latent_kl(read),
            "hierarchical_kl": self._hierarchical_kl(read),
            "attention_kl": self._attention_kl(read),
            "cluster_entropy": self._cluster_entropy(read),
            "gram_enc_loss": self._gram(read),
        }
        if "unrolled" in read:
            unrolled = read("unrolled", "B U C H W")
            if unrolled.shape[1] >= read.sizes["T"]:
                most = f"{read.sizes['T']} frames, so it must have fewer"
                raise ValueError(f"unrolled has {unrolled.shape[1]} frames; a sequence has {most}")
            terms["unrolled_loss"] = self._gaussian(unrolled, read.observations[:, -unrolled.shape[1] :])
        return terms

    def _reconstruction(self, read: OutputReader) -> Tensor:
        if "reconstruction_nll" in read:
            return read("reconstruction_nll", "B T").mean()
        return self._gaussian(read("reconstruction", "B T C H W"), read.observations)

    def _gaussian(self, frames: Tensor, truth: Tensor) -> Tensor:
        """1/2 sum |x - x'|^2/sigma^2 over the pixels of a frame, then the mean over frames, ()."""
        return 0.5 * ((frames - truth) / self.observation_std).square().sum((-3, -2, -1)).mean()

    def _latent_kl(self, read: OutputReader) -> Tensor:
        mean, log_variance = read("latent_mean", "B T D"), read("latent_log_variance", "B T D")
        prior_mean, prior_log_variance = (read(name, "K D", "B T K D") for name in ("prior_mean", "prior_log_variance"))
        if self.latent_kl == "bound":
            responsibilities = read("responsibilities", "B T K")
            return mixture_kl(mean, log_variance, prior_mean, prior_log_variance, responsibilities).mean()
        weights = read("mixing_weights", "K", "B T K")
        noise = torch.randn(self.kl_samples, *mean.shape).to(mean)
        return sampled_mixture_kl(mean, log_variance, prior_mean, prior_log_variance, weights, noise)

    def _hierarchical_kl(self, read: OutputReader) -> Tensor:
        a, b = (read(name, "K-1", "B T K-1") for name in ("stick_a", "stick_b"))
        responsibilities = read("responsibilities", "B T K")
        of_concentration: Tensor | None = None
        if "concentration_shape" in read or "concentration_rate" in read:
            shape, rate = (read(name, "B T") for name in ("concentration_shape", "concentration_rate"))
            mean, log_mean = (shape / rate).unsqueeze(-1), (shape.digamma() - rate.log()).unsqueeze(-1)
            kl = kumaraswamy_beta_kl(a, b, mean, log_mean).sum(-1)  # (B, T)
            of_concentration = gamma_kl(shape, rate).mean()
        else:
            kl = kumaraswamy_beta_kl(a, b, self.concentration).sum(-1)  # () or (B, T)
        if a.ndim == 1:
            kl = kl / (self.num_frames or responsibilities[..., 0].numel())
        total = kl.mean()
        if self.assignments:
            total = total + assignment_kl(responsibilities, expected_log_weights(a, b)).mean()
        return total if of_concentration is None else total + of_concentration

    def _attention_kl(self, read: OutputReader) -> Tensor:
        attention = read("attention", "B T S h w")
        if "attention_prior" not in read:
            return attention_kl(attention).sum(-1).mean()
        prior = read("attention_prior", "B T S h w", "B T-1 S h w")
        return attention_kl(attention[:, -prior.shape[1] :], prior).sum(-1).mean()

    def _cluster_entropy(self, read: OutputReader) -> Tensor:
        responsibilities = read("responsibilities", "B T K")
        if self.cluster_entropy == "usage":
            return entropy(responsibilities.mean((0, 1)))
        return entropy(responsibilities).mean() + entropy(read("mixing_weights", "K", "B T K")).mean()

    def _gram(self, read: OutputReader) -> Tensor:
        if self.gram == "orthogonal":
            return gram_penalty(read("slots", "B T S F")).mean()
        features, teacher = (read.outputs.get(name) for name in ("encoder_features", "teacher_features"))
        if features is None or teacher is None:
            missing = "encoder_features" if features is None else "teacher_features"
            raise ValueError(f"the outputs have no {missing!r}; gram='teacher' needs features and those of a teacher")
        return gram_distance(features, teacher)


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


def sampled_mixture_kl(
    mean: Tensor,
    log_variance: Tensor,
    prior_mean: Tensor,
    prior_log_variance: Tensor,
    weights: Tensor,
    noise: Tensor,
) -> Tensor:
    """KL(N(m, s^2) || sum_k pi_k N(m_k, s_k^2)) in nats, as a mean over the samples z = m + s noise.

    Args:
        mean: m (..., D).
        log_variance: log s^2 (..., D), clamped to [-30, 30].
        prior_mean: m_k (K, D) or (..., K, D), of the components.
        prior_log_variance: log s_k^2 (K, D) or (..., K, D), of the components, clamped to [-30, 30].
        weights: pi (K,) or (..., K), with sum 1.
        noise: standard normal numbers (n, ..., D).

    Returns:
        A scalar, the mean over samples and all leading dimensions.
    """
    log_variance = log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)
    prior_log_variance = prior_log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)
    z = mean + noise * (0.5 * log_variance).exp()
    # The constant D log(2 pi)/2 of both densities cancels.
    own = -0.5 * (log_variance + noise.square()).sum(-1)
    square = (z.unsqueeze(-2) - prior_mean).square() * (-prior_log_variance).exp()
    each = -0.5 * (prior_log_variance + square).sum(-1)  # (n, ..., K)
    return (own - (each + (weights + FLOOR).log()).logsumexp(-1)).mean()


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
