"""From the outputs of a model to one loss per task: the weights of all terms in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from mtrl.limits import check_choice, check_number
from mtrl.losses.adversarial import AdversarialLoss
from mtrl.losses.elbo import ELBOLoss
from mtrl.losses.outputs import ModelOutputs, Steps
from mtrl.losses.perceiver import PerceiverLoss
from mtrl.losses.predictive import PredictiveLoss

TASKS = ("elbo", "perceiver", "predictive", "adversarial")
"""The names of the four tasks, in order."""

TOTALS = dict(zip(TASKS, ("total_vae_loss", "perceiver_loss", "attention_loss", "adversarial_loss"), strict=True))
"""By task, the name of its total in the dictionary of all losses."""

AttentionTask = Literal["elbo", "predictive"]
WEIGHTS = (
    "beta",
    "lambda_recon",
    "entropy_weight",
    "lambda_gram",
    "lambda_unroll",
    "commitment_weight",
    "lambda_next_token",
    "lambda_att_dyn",
    "lambda_diversity",
    "lambda_gan",
    "lambda_features",
)


@dataclass(frozen=True)
class LossAggregator:
    """Computes all terms, and adds them up by task: ELBO, Perceiver, Predictive and, optionally, Adversarial.

        aggregator = LossAggregator()
        losses, task_losses = aggregator.compute_losses(outputs, observations, beta=schedule(step))
        rgb.backward(task_losses)
        optimizer.step()

    If `shared` are the parameters that compute the features that all tasks use, `rgb.backward(task_losses, shared)` is
    the better call. Without `shared`, all parameters that two losses depend on are balanced, such as those of the
    decoder. RGB gives equal weight to the directions of all gradients, so that there the adversarial gradient, which is
    tiny at first, would count as much as that of the reconstruction.

    With the weights of `compute_losses` the totals are

        total_vae_loss   = lambda_recon recon_loss + beta (kl_z + hierarchical_kl + attention_kl)
                           - entropy_weight cluster_entropy + lambda_gram gram_enc_loss
                           + lambda_unroll unrolled_loss
        perceiver_loss   = perceiver_recon_loss + vq_codebook_loss + commitment_weight vq_commitment_loss
                           + lambda_next_token next_token_loss
        attention_loss   = lambda_att_dyn attention_dynamics_loss + lambda_diversity attention_diversity
        adversarial_loss = lambda_gan (generator_loss + lambda_features feature_matching_loss)

    With `attention_kl_in="predictive"`, beta attention_kl is part of attention_loss instead of total_vae_loss.

    The cluster entropy is subtracted because it is to be maximised. `total_vae_loss` is therefore at least
    -entropy_weight log K. The other totals are at least 0, except for the adversarial one with `kind="hinge"`.

    The loss of the discriminator is not part of a task. It needs an optimizer of its own:
    `aggregator.adversarial.discriminator(real_logits, fake_logits)`.

    Args:
        elbo: computes the terms of the first task.
        perceiver: computes the terms of the second task.
        predictive: computes the terms of the third task.
        adversarial: computes the terms of the fourth task, and the loss of the discriminator.
        attention_kl_in: the task that the attention KL belongs to, `"elbo"` or `"predictive"`. Default `"elbo"`.

    Raises:
        ValueError: `attention_kl_in` is unknown.
    """

    elbo: ELBOLoss = field(default_factory=ELBOLoss)
    perceiver: PerceiverLoss = field(default_factory=PerceiverLoss)
    predictive: PredictiveLoss = field(default_factory=PredictiveLoss)
    adversarial: AdversarialLoss = field(default_factory=AdversarialLoss)
    attention_kl_in: AttentionTask = "elbo"

    def __post_init__(self) -> None:
        """Check the choice."""
        check_choice("attention_kl_in", self.attention_kl_in, get_args(AttentionTask))

    @classmethod
    def published(cls) -> Self:
        """An aggregator whose every option is that of the public original, AIME.

        The page of the losses in the documentation lists each difference. One is a weight: the original does not weigh
        the diversity, which is `compute_losses(..., lambda_diversity=1.0)`. If its model has computed the terms
        already, as lists by frame, `published_losses` adds them up.
        """
        return cls(
            ELBOLoss(latent_kl="sampled", assignments=False, cluster_entropy="two_parts", gram="teacher"),
            PerceiverLoss(reconstruction="tokens", label_smoothing=0.1),
            PredictiveLoss(detach_target=False, dynamics="movement", diversity="squared_cosine"),
            AdversarialLoss("wasserstein"),
            attention_kl_in="predictive",
        )

    def compute_losses(
        self,
        outputs: ModelOutputs | Mapping[str, Any],
        observations: Steps,
        beta: float = 1.0,
        lambda_recon: float = 1.0,
        *,
        entropy_weight: float = 0.1,
        lambda_gram: float = 0.05,
        lambda_unroll: float = 1.0,
        commitment_weight: float = 0.25,
        lambda_next_token: float = 1.0,
        lambda_att_dyn: float = 0.1,
        lambda_diversity: float = 0.1,
        lambda_gan: float = 0.1,
        lambda_features: float = 1.0,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Compute all terms, and the loss of each task.

        Args:
            outputs: see `ModelOutputs`. Without `fake_logits` there is no adversarial task in either result.
            observations: (B, T, C, H, W), in the units of the reconstructions.
            beta: weight of the three KLs, for annealing. Default 1.0.
            lambda_recon: weight of the reconstruction. Default 1.0.
            entropy_weight: weight of the cluster entropy. Default 0.1.
            lambda_gram: weight of the Gram term. Default 0.05.
            lambda_unroll: weight of frames predicted from the model's own frames. Default 1.0.
            commitment_weight: weight of the commitment. Default 0.25, as in van den Oord et al. (2017).
            lambda_next_token: weight of the prediction of the next tokens. Default 1.0.
            lambda_att_dyn: weight of the attention dynamics. Default 0.1.
            lambda_diversity: weight of the overlap of slots. Default 0.1.
            lambda_gan: weight of the adversarial task. Default 0.1.
            lambda_features: weight of feature matching within the adversarial task. Default 1.0.

        Returns:
            Terms and totals by name, each () and, but for the perplexity, attached to the graph; and the four totals.

        Raises:
            ValueError: an output is missing or has the wrong shape, or a weight is negative or not finite.
        """
        weights = beta, lambda_recon, entropy_weight, lambda_gram, lambda_unroll, commitment_weight, lambda_next_token
        _check(outputs, (*weights, lambda_att_dyn, lambda_diversity, lambda_gan, lambda_features))
        losses = self.elbo(outputs, observations)
        in_elbo = self.attention_kl_in == "elbo"
        frames = lambda_recon * losses["recon_loss"] + lambda_unroll * losses.get("unrolled_loss", 0.0)
        kl = losses["kl_z"] + losses["hierarchical_kl"] + (losses["attention_kl"] if in_elbo else 0.0)
        regularisers = lambda_gram * losses["gram_enc_loss"] - entropy_weight * losses["cluster_entropy"]
        losses["total_vae_loss"] = frames + beta * kl + regularisers
        losses |= self.perceiver(outputs, observations)
        tokens = losses["vq_codebook_loss"] + commitment_weight * losses["vq_commitment_loss"]
        next_tokens = lambda_next_token * losses.get("next_token_loss", 0.0)
        losses["perceiver_loss"] = losses["perceiver_recon_loss"] + tokens + next_tokens
        losses |= self.predictive(outputs, observations)
        maps = lambda_att_dyn * losses["attention_dynamics_loss"] + lambda_diversity * losses["attention_diversity"]
        losses["attention_loss"] = maps + (0.0 if in_elbo else beta * losses["attention_kl"])
        if outputs.get("fake_logits") is not None:
            losses |= self.adversarial(outputs)
            features = lambda_features * losses.get("feature_matching_loss", 0.0)
            losses["adversarial_loss"] = lambda_gan * (losses["generator_loss"] + features)
        return losses, [losses[total] for total in TOTALS.values() if total in losses]


def _check(outputs: Mapping[str, Any], weights: tuple[float, ...]) -> None:
    """Refuse weights out of range, and outputs that are losses.

    Raises:
        ValueError: see `LossAggregator.compute_losses`.
    """
    for name, weight in zip(WEIGHTS, weights, strict=True):
        check_number(name, weight, least=0)
    if "reconstruction_losses" in outputs:
        raise ValueError(
            "the outputs hold 'reconstruction_losses', which are losses already: mtrl.losses.published_losses adds up "
            "those of AIME's model; LossAggregator computes losses from predictions, see ModelOutputs"
        )


def loss_metrics(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """The losses that `compute_losses` returned, as numbers to log, with one transfer from the device for all."""
    if not losses:
        return {}
    values = torch.stack([loss.detach().double() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))
