"""Printing of every loss term that the objectives of a world model have."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from experiments.demonstrations.loss_aggregation import AggregationConfig
from experiments.demonstrations.tiny_model import TinyWorldModel, moving_squares, tiny_discriminator
from experiments.world_model.discriminator import judged
from mtrl.losses import TASKS, TOTALS, LossAggregator, loss_metrics

UNITS = {
    "recon_loss": "nats per frame",
    "kl_z": "nats per frame",
    "hierarchical_kl": "nats per frame",
    "attention_kl": "nats per frame",
    "cluster_entropy": "nats, to be made larger",
    "gram_enc_loss": "squared cosine",
    "perceiver_recon_loss": "squared error per pixel",
    "vq_codebook_loss": "squared error per number",
    "vq_commitment_loss": "squared error per number",
    "codebook_perplexity": "codes in use, a metric",
    "attention_dynamics_loss": "nats per frame",
    "attention_diversity": "cosine",
    "generator_loss": "nats per pair of frames",
    "feature_matching_loss": "absolute difference",
}


def print_terms(config: AggregationConfig) -> None:
    """Compute the losses of a tiny random model, and print the terms of each task and its total."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    observations, actions = moving_squares(config.sequences, config.frames, generator)
    outputs = TinyWorldModel().forward_sequence(observations, actions)
    if config.adversarial:
        outputs = judged(outputs, tiny_discriminator(), observations)
    losses, task_losses = LossAggregator().compute_losses(
        outputs,
        observations,
        config.beta,
        config.lambda_recon,
        entropy_weight=config.entropy_weight,
        lambda_gram=config.lambda_gram,
        lambda_att_dyn=config.lambda_att_dyn,
        lambda_gan=config.lambda_gan,
    )
    print(f"observations {tuple(observations.shape)}, actions {tuple(actions.shape)}\n")
    _print_tasks(loss_metrics(losses))
    inside = ", ".join(f"{task} {loss.item():.4f}" for task, loss in zip(TASKS, task_losses, strict=False))
    print(f"task_losses, as a balancer takes them: {inside}")


def _print_tasks(values: Mapping[str, float]) -> None:
    """Print one block of lines per task. In `values` the terms of a task stand right before its total."""
    waiting = list(values)
    for task, total in TOTALS.items():
        if total not in values:
            print(f"{task}: none, as the outputs have no 'fake_logits'\n")
            continue
        print(task)
        end = waiting.index(total) + 1
        for name in waiting[: end - 1]:
            print(f"  {name:25}{values[name]:12.4f}  {UNITS[name]}")
        print(f"  {total:25}{values[total]:12.4f}  task loss\n")
        waiting = waiting[end:]
