"""A readout: what the game tells about a lander, estimated from what the world model knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experiments.world_model.model import WorldModel, features_before

HIDDEN = 128
UPDATES, BATCH, RATE = 1000, 256, 2e-3
QUANTITIES = ("x", "y", "speed x", "speed y", "angle", "angular speed", "left leg", "right leg")


class Readout(nn.Module):
    """Estimates the game's observation (8 numbers) from the model's state and its summary of a frame.

    Args:
        known: the size of a state and a summary together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, known: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(known, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(QUANTITIES)))
        self.register_buffer("mean", torch.zeros(len(QUANTITIES)))
        self.register_buffer("std", torch.ones(len(QUANTITIES)))

    def forward(self, known: Tensor) -> Tensor:
        """The estimates (..., 8) from `known` (..., known)."""
        estimate: Tensor = self.mean + self.std * self.layers(known)
        return estimate

    def fit(self, known: Tensor, observations: Tensor, generator: torch.Generator) -> None:
        """Learn from N frames: `known` (N, known) and the game's `observations` (N, 8)."""
        self.mean.copy_(observations.mean(0))
        self.std.copy_(observations.std(0) + 1e-6)
        optimizer = torch.optim.Adam(self.parameters(), RATE)
        for _ in range(UPDATES):
            rows = torch.randint(len(known), (BATCH,), generator=generator)
            error = (self(known[rows]) - observations[rows]) / self.std
            optimizer.zero_grad()
            error.square().mean().backward()
            optimizer.step()


@torch.no_grad()
def known_of(model: WorldModel, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """What the model knows at each frame of sequences, and the states after each frame and its action.

    Args:
        model: the model.
        frames: (B, T, C, H, W).
        actions: one-hot, (B, T, A).

    Returns:
        The states before the frames beside the summaries of the frames, (B, T, known); and the states (B, T, ...).
    """
    B, T = frames.shape[:2]
    seen, slots, _ = model.look(frames.flatten(0, 1))
    summary = torch.unflatten(model.summarise(slots, seen, features_before(seen, B, T)), 0, (B, T))
    states = model.remember(summary, actions)
    return torch.cat([states[:, :-1], summary], -1), states[:, 1:]


def explained(estimates: Tensor, truth: Tensor) -> dict[str, float]:
    """The share of the variance that the estimates (N, 8) explain of each quantity of `truth` (N, 8)."""
    left = (estimates - truth).square().mean(0) / truth.var(0, unbiased=False).clamp_min(1e-12)
    return dict(zip(QUANTITIES, (1 - left).tolist(), strict=True))


def shaped_return(observations: Tensor, actions: Tensor, frame_skip: int) -> Tensor:
    """LunarLander's reward (N,) from the first of L + 1 observations to the last, without the 100 of an end.

    Args:
        observations: (N, L + 1, 8).
        actions: the numbers of the actions taken, (N, L). Each lasts `frame_skip` steps.
        frame_skip: environment steps from one frame to the next.
    """
    potential = [_potential(observations[:, place]) for place in (0, -1)]
    fuel: Sequence[Tensor] = (0.3 * (actions == 2).sum(1), 0.03 * ((actions == 1) | (actions == 3)).sum(1))
    return potential[1] - potential[0] - frame_skip * sum(fuel)


def _potential(observation: Tensor) -> Tensor:
    x, y, speed_x, speed_y, angle, _, left, right = observation.unbind(-1)
    legs = (left > 0.5).float() + (right > 0.5).float()
    return -100 * (torch.hypot(x, y) + torch.hypot(speed_x, speed_y) + angle.abs()) + 10 * legs
