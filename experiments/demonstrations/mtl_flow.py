"""`python -m experiments.demonstrations.mtl_flow`: the whole way from frames to balanced steps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.program.command import run


@dataclass(frozen=True)
class FlowConfig:
    """Train a tiny world model on four objectives: outputs, losses, balanced gradients, optimizer step.

    The video is a small one that it learns by heart. A discriminator learns beside it, with an optimizer of its own.
    """

    balancer: str = "rgb"
    """equal, gradnorm, pcgrad, rgb, aim, gradnorm_pcgrad, random or torchjd:<aggregator>."""

    steps: int = 100
    """Updates of model and discriminator."""

    learning_rate: float = 4e-3
    """Step size of Adam; the tokenizer's is 1.5 times as large, the discriminator's 1/20."""

    sequences: int = 8
    """Of the video, from 1 to 64."""

    frames: int = 6
    """In each sequence, from 2 to 64."""

    seed: int = 0
    """Of model, video and balancer."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 10 <= self.steps <= 1_000_000:
            raise ValueError(f"steps is {self.steps}; it must be between 10 and 1000000")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 and at most 1")
        if not 1 <= self.sequences <= 64:
            raise ValueError(f"sequences is {self.sequences}; it must be between 1 and 64")
        if not 2 <= self.frames <= 64:
            raise ValueError(f"frames is {self.frames}; it must be between 2 and 64")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be between 0 and 2**63 - 1")


def demonstrate(config: FlowConfig) -> None:
    """Train, printing ten lines; then what each task's loss was and is."""
    import torch  # noqa: PLC0415 - loads only when there is something to show

    from experiments.demonstrations.tiny_model import (  # noqa: PLC0415
        PatchDiscriminator,
        TinyWorldModel,
        moving_squares,
    )
    from experiments.world_model.discriminator import judged  # noqa: PLC0415
    from mtrl import make_balancer  # noqa: PLC0415
    from mtrl.losses import TASKS, ELBOLoss, Linear, LossAggregator, loss_metrics, parameter_groups  # noqa: PLC0415

    torch.set_num_threads(1)  # two threads are slower at these sizes
    torch.manual_seed(config.seed)
    balancer = make_balancer(config.balancer, num_tasks=len(TASKS))
    observations, actions = moving_squares(config.sequences, config.frames, torch.Generator().manual_seed(config.seed))
    model, discriminator = TinyWorldModel(), PatchDiscriminator()
    aggregator = LossAggregator(ELBOLoss(observation_std=0.2))
    beta = Linear(0.0, 1.0, config.steps // 2)
    optimizer = torch.optim.Adam(parameter_groups(model, model.tokenizer, config.learning_rate))
    judge_optimizer = torch.optim.Adam(discriminator.parameters(), config.learning_rate / 20)

    history: list[list[float]] = []
    print(f"{'step':>5} {'beta':>5}" + "".join(f"{task:>13}" for task in TASKS) + f"{'discriminator':>15}")
    for step in range(config.steps):
        outputs = judged(model.forward_sequence(observations, actions), discriminator, observations)
        losses, task_losses = aggregator.compute_losses(outputs, observations, beta=beta(step))
        optimizer.zero_grad()
        weights = balancer.backward(task_losses, model.shared)  # decoders get their ordinary gradients
        optimizer.step()

        real, _ = discriminator(observations)
        fake, _ = discriminator(outputs["reconstruction"].detach())
        judge_loss = aggregator.adversarial.discriminator(real, fake)
        judge_optimizer.zero_grad()
        judge_loss.backward()  # type: ignore[no-untyped-call]
        judge_optimizer.step()

        history.append([loss.item() for loss in task_losses])
        if step % (config.steps // 10) == 0 or step == config.steps - 1:
            numbers = "".join(f"{value:13.4f}" for value in history[-1])
            print(f"{step:5} {beta(step):5.2f}{numbers}{judge_loss.item():15.4f}")

    terms = ", ".join(f"{name} {value:.3g}" for name, value in loss_metrics(losses).items())
    coefficients = ", ".join(f"{weight:.3g}" for weight in weights.tolist())
    print(f"\nterms at the end: {terms}\ncoefficients of the task gradients at the end: {coefficients}\n")
    tenth = config.steps // 10
    for index, task in enumerate(TASKS):
        first, last = (sum(row[index] for row in rows) / tenth for rows in (history[:tenth], history[-tenth:]))
        verdict = "fell" if last < first else "did not fall"
        print(f"{task:12}{first:10.4f} -> {last:.4f}  {verdict}")
    print(f"means of the first and the last {tenth} steps; the adversarial loss depends on its opponent and may rise")


def main(argv: Sequence[str] | None = None) -> int:
    """Show it and return the exit status."""
    return run(demonstrate, FlowConfig, argv, prog="experiments.demonstrations.mtl_flow")


if __name__ == "__main__":
    sys.exit(main())
