"""Training of a tiny world model: outputs, losses, balanced gradients, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from experiments.demonstrations.mtl_flow import FlowConfig
from experiments.demonstrations.tiny_model import TinyWorldModel, moving_squares, tiny_discriminator
from experiments.program.balancer_options import balancer_from
from experiments.world_model.discriminator import judged, judgements
from mtrl.losses import TASKS, ELBOLoss, Linear, LossAggregator, loss_metrics, parameter_groups


def train(config: FlowConfig) -> None:
    """Train with ten lines of progress, then print the last loss terms and how far each task's loss has fallen."""
    torch.set_num_threads(1)  # two threads are slower at these sizes
    torch.manual_seed(config.seed)
    balancer = balancer_from(config.balancer, len(TASKS), config.balancer_options)
    observations, actions = moving_squares(config.sequences, config.frames, torch.Generator().manual_seed(config.seed))
    model, discriminator = TinyWorldModel(), tiny_discriminator()
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

        judge_loss = aggregator.adversarial.discriminator(*judgements(discriminator, outputs, observations))
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
    _print_progress(history)


def _print_progress(history: Sequence[Sequence[float]]) -> None:
    """Print for each task whether its loss fell. `history` has a row per step and a number per task."""
    tenth = len(history) // 10
    for index, task in enumerate(TASKS):
        first, last = (sum(row[index] for row in rows) / tenth for rows in (history[:tenth], history[-tenth:]))
        verdict = "fell" if last < first else "did not fall"
        print(f"{task:12}{first:10.4f} -> {last:.4f}  {verdict}")
    print(f"means of the first and the last {tenth} steps; the adversarial loss depends on its opponent and may rise")
