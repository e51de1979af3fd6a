"""`python -m experiments.demonstrations.loss_aggregation`: every loss term of a tiny random model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.program.command import run

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
    "generator_loss": "nats per patch",
    "feature_matching_loss": "absolute difference",
}


@dataclass(frozen=True)
class AggregationConfig:
    """Compute the losses of a tiny random model on a video of moving squares, and print each term."""

    sequences: int = 4
    """Of the video, from 1 to 64."""

    frames: int = 8
    """In each sequence, from 2 to 64."""

    beta: float = 1.0
    """Weight of the three KLs."""

    lambda_recon: float = 1.0
    """Weight of the reconstruction."""

    entropy_weight: float = 0.1
    """Weight of the cluster entropy, which is subtracted."""

    lambda_gram: float = 0.05
    """Weight of the Gram penalty."""

    lambda_att_dyn: float = 0.1
    """Weight of the attention dynamics."""

    lambda_gan: float = 0.1
    """Weight of the adversarial task."""

    adversarial: bool = True
    """Whether there is a discriminator, and so a fourth task."""

    seed: int = 0
    """Of the model and the video."""

    def __post_init__(self) -> None:
        """Check the sizes; the aggregator checks the weights."""
        if not 1 <= self.sequences <= 64:
            raise ValueError(f"sequences is {self.sequences}; it must be between 1 and 64")
        if not 2 <= self.frames <= 64:
            raise ValueError(f"frames is {self.frames}; it must be between 2 and 64")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be between 0 and 2**63 - 1")


def demonstrate(config: AggregationConfig) -> None:
    """Print the terms of each task and its total."""
    import torch  # noqa: PLC0415 - loads only when there is something to show

    from experiments.demonstrations.tiny_model import (  # noqa: PLC0415
        PatchDiscriminator,
        TinyWorldModel,
        moving_squares,
    )
    from experiments.world_model.discriminator import judged  # noqa: PLC0415
    from mtrl.losses import TASKS, TOTALS, LossAggregator, loss_metrics  # noqa: PLC0415

    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    observations, actions = moving_squares(config.sequences, config.frames, generator)
    outputs = TinyWorldModel().forward_sequence(observations, actions)
    if config.adversarial:
        outputs = judged(outputs, PatchDiscriminator(), observations)
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
    values = loss_metrics(losses)
    print(f"observations {tuple(observations.shape)}, actions {tuple(actions.shape)}\n")
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
    inside = ", ".join(f"{task} {loss.item():.4f}" for task, loss in zip(TASKS, task_losses, strict=False))
    print(f"task_losses, as a balancer takes them: {inside}")


def main(argv: Sequence[str] | None = None) -> int:
    """Show it and return the exit status."""
    return run(demonstrate, AggregationConfig, argv, prog="experiments.demonstrations.loss_aggregation")


if __name__ == "__main__":
    sys.exit(main())
