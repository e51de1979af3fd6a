"""From a model's outputs to the losses that a balancer balances: all weights in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtrl.losses.adversarial import AdversarialLoss
from mtrl.losses.elbo import ELBOLoss
from mtrl.losses.outputs import ModelOutputs, Steps
from mtrl.losses.perceiver import PerceiverLoss
from mtrl.losses.predictive import PredictiveLoss

TASKS = ("elbo", "perceiver", "predictive", "adversarial")
# The task's own loss in the dictionary of all.
TOTALS = dict(zip(TASKS, ("total_vae_loss", "perceiver_loss", "attention_loss", "adversarial_loss"), strict=True))


@dataclass(frozen=True)
class LossAggregator:
    """Computes every term and groups them by task: ELBO, Perceiver, Predictive and, if there is one, Adversarial.

        aggregator = LossAggregator()
        losses, task_losses = aggregator.compute_losses(outputs, observations, beta=schedule(step))
        rgb.backward(task_losses)
        optimizer.step()

    `rgb.backward(task_losses, shared)` is the better call where `shared` are the parameters that make the features all
    tasks look at. Left out, it is whatever two losses depend on, the decoder too; and as RGB gives all gradients equal
    say, there the adversarial one, which is next to nothing at first, would count as much as the reconstruction's.

    The discriminator's own loss is no task: `aggregator.adversarial.discriminator(real_logits, fake_logits)`, with its
    own optimizer.

    Args:
        elbo: terms of the first task, with their settings.
        perceiver: of the second.
        predictive: of the third.
        adversarial: of the fourth, and the discriminator's loss.
    """

    elbo: ELBOLoss = field(default_factory=ELBOLoss)
    perceiver: PerceiverLoss = field(default_factory=PerceiverLoss)
    predictive: PredictiveLoss = field(default_factory=PredictiveLoss)
    adversarial: AdversarialLoss = field(default_factory=AdversarialLoss)

    def compute_losses(
        self,
        outputs: ModelOutputs | Mapping[str, Any],
        observations: Steps,
        beta: float = 1.0,
        lambda_recon: float = 1.0,
        *,
        entropy_weight: float = 0.1,
        lambda_gram: float = 0.05,
        commitment_weight: float = 0.25,
        lambda_att_dyn: float = 0.1,
        lambda_diversity: float = 0.1,
        lambda_gan: float = 0.1,
        lambda_features: float = 1.0,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """All terms, and the losses of the tasks.

            total_vae_loss   = lambda_recon recon_loss + beta (kl_z + hierarchical_kl + attention_kl)
                               - entropy_weight cluster_entropy + lambda_gram gram_enc_loss
            perceiver_loss   = perceiver_recon_loss + vq_codebook_loss + commitment_weight vq_commitment_loss
            attention_loss   = lambda_att_dyn attention_dynamics_loss + lambda_diversity attention_diversity
            adversarial_loss = lambda_gan (generator_loss + lambda_features feature_matching_loss)

        Cluster entropy is subtracted: it is made larger. `total_vae_loss` is thus at least -entropy_weight log K; the
        others are at least 0, but for the generator's with `kind="hinge"`.

        Args:
            outputs: see `ModelOutputs`. Without `fake_logits` there is no adversarial task: its names are not in the
                dictionary and it has no place in the list.
            observations: (B, T, C, H, W), floating point, in the units of the reconstructions.
            beta: weight of the three KLs, for annealing. Default 1.0.
            lambda_recon: weight of the reconstruction. Default 1.0.
            entropy_weight: of the cluster entropy. Default 0.1.
            lambda_gram: of the Gram penalty. Default 0.05.
            commitment_weight: of the VQ commitment; 0.25 as in van den Oord et al. (2017).
            lambda_att_dyn: of the attention dynamics. Default 0.1.
            lambda_diversity: of the overlap of slots. Default 0.1.
            lambda_gan: of the adversarial task. Default 0.1.
            lambda_features: of feature matching within it. Default 1.0.

        Returns:
            Terms and totals by name, each () and attached to the graph (the perplexity, a metric, is not), and the
            totals in the order elbo, perceiver, predictive, adversarial.

        Raises:
            ValueError: an output is missing or has the wrong shape (the message names it and what was expected), or a
                weight is negative or not finite.
        """
        weights = {
            "beta": beta,
            "lambda_recon": lambda_recon,
            "entropy_weight": entropy_weight,
            "lambda_gram": lambda_gram,
            "commitment_weight": commitment_weight,
            "lambda_att_dyn": lambda_att_dyn,
            "lambda_diversity": lambda_diversity,
            "lambda_gan": lambda_gan,
            "lambda_features": lambda_features,
        }
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be at least 0 and finite")

        losses = self.elbo(outputs, observations)
        kl = losses["kl_z"] + losses["hierarchical_kl"] + losses["attention_kl"]
        regularisers = lambda_gram * losses["gram_enc_loss"] - entropy_weight * losses["cluster_entropy"]
        losses["total_vae_loss"] = lambda_recon * losses["recon_loss"] + beta * kl + regularisers

        losses |= self.perceiver(outputs, observations)
        quantisation = losses["vq_codebook_loss"] + commitment_weight * losses["vq_commitment_loss"]
        losses["perceiver_loss"] = losses["perceiver_recon_loss"] + quantisation

        losses |= self.predictive(outputs, observations)
        dynamics = lambda_att_dyn * losses["attention_dynamics_loss"]
        losses["attention_loss"] = dynamics + lambda_diversity * losses["attention_diversity"]

        if outputs.get("fake_logits") is not None:
            losses |= self.adversarial(outputs)
            features = lambda_features * losses.get("feature_matching_loss", 0.0)
            losses["adversarial_loss"] = lambda_gan * (losses["generator_loss"] + features)
        return losses, [losses[total] for total in TOTALS.values() if total in losses]


def loss_metrics(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """What `compute_losses` gave, as numbers to log: detached, with one transfer from the device for all."""
    if not losses:
        return {}
    values = torch.stack([loss.detach().double() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))
