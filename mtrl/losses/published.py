"""The totals of the public original, from losses that its model has computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtrl.limits import check_number

LISTS = {
    "recon_loss": "reconstruction_losses",
    "kl_z": "kl_latents",
    "hierarchical_kl": "kumaraswamy_kl_losses",
    "attention_kl": "attention_losses",
    "cluster_entropy": "cluster_entropies",
    "gram_enc_loss": "gram_enc",
    "attention_diversity": "attention_diversity_losses",
}
SCALARS = {"perceiver_loss": "perceiver_total_loss", "attention_dynamics_loss": "attention_dynamics_loss"}


def published_losses(
    outputs: Mapping[str, Any],
    beta: float = 1.0,
    entropy_weight: float = 0.1,
    lambda_recon: float = 1.0,
    lambda_att_dyn: float = 0.1,
    lambda_gram: float = 0.05,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Add up losses as the `LossAggregator` of AIME's `multi_task_learning` does, with its arguments in its order.

    AIME (https://github.com/neuronphysics/AIME) computes its terms inside the model. Each term is the mean of a list by
    frame, or a scalar, and a term that the outputs lack counts as 0:

        total_vae_loss   = lambda_recon recon_loss + beta (kl_z + hierarchical_kl)
                           - entropy_weight cluster_entropy + lambda_gram gram_enc_loss
        attention_loss   = beta attention_kl + lambda_att_dyn attention_dynamics_loss
                           + attention_diversity
        total_elbo       = total_vae_loss + beta attention_kl
        total_predictive = attention_loss

    Args:
        outputs: what AIME's `forward_sequence` returns: lists of scalars `reconstruction_losses`, `kl_latents`,
            `kumaraswamy_kl_losses`, `attention_losses`, `cluster_entropies`, `gram_enc` and
            `attention_diversity_losses`; scalars `perceiver_total_loss` and `attention_dynamics_loss`. Others are
            ignored.
        beta: weight of the three KLs. Default 1.0.
        entropy_weight: weight of the cluster entropy, which is subtracted. Default 0.1.
        lambda_recon: weight of the reconstruction. Default 1.0.
        lambda_att_dyn: weight of the attention dynamics. Default 0.1.
        lambda_gram: weight of the Gram loss. Default 0.05.

    Returns:
        Terms and totals by name, each (), and the losses of three tasks, which are total_vae_loss, perceiver_loss and
        attention_loss.

    Raises:
        ValueError: the outputs have none of these terms, a term is no tensor or not a scalar, or a weight is negative
            or not finite.
    """
    weights = (beta, entropy_weight, lambda_recon, lambda_att_dyn, lambda_gram)
    names = ("beta", "entropy_weight", "lambda_recon", "lambda_att_dyn", "lambda_gram")
    for name, weight in zip(names, weights, strict=True):
        check_number(name, weight, least=0)
    found = {term: _mean(key, outputs.get(key)) for term, key in (LISTS | SCALARS).items()}
    there = [value for value in found.values() if value is not None]
    if not there:
        raise ValueError(f"the outputs have none of {', '.join((*LISTS.values(), *SCALARS.values()))}")
    losses = {term: there[0].new_zeros(()) if value is None else value for term, value in found.items()}
    losses["total_vae_loss"] = (
        lambda_recon * losses["recon_loss"]
        + beta * (losses["kl_z"] + losses["hierarchical_kl"])
        - entropy_weight * losses["cluster_entropy"]
        + lambda_gram * losses["gram_enc_loss"]
    )
    attention_kl = beta * losses["attention_kl"]
    dynamics = lambda_att_dyn * losses["attention_dynamics_loss"]
    losses["attention_loss"] = attention_kl + dynamics + losses["attention_diversity"]
    losses["total_elbo"] = losses["total_vae_loss"] + attention_kl
    losses["total_predictive"] = losses["attention_loss"]
    return losses, [losses[total] for total in ("total_vae_loss", "perceiver_loss", "attention_loss")]


def _mean(name: str, value: Tensor | Sequence[Tensor] | None) -> Tensor | None:
    """A term (), or None if it is missing or its list is empty."""
    steps = [] if value is None else [value] if isinstance(value, Tensor) else list(value)
    if not all(isinstance(step, Tensor) and step.numel() == 1 for step in steps):
        raise ValueError(f"{name} must be a scalar tensor, or a list with one for each frame")
    return torch.stack([step.reshape(()) for step in steps]).mean() if steps else None
