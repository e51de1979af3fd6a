"""`python -m experiments.demonstrations.rgb_balancing`: RGB on gradients that conflict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.demonstrations.config import SeedConfig
from experiments.program.command import run
from mtrl.limits import check_number

LARGEST = 10_000_000  # numbers in all gradients together


@dataclass(frozen=True)
class BalancingConfig(SeedConfig):
    """Balance synthetic gradients with RGB, and print their conflict before and after."""

    tasks: int = 4
    """Number of tasks T, and so of gradients, from 2 to 10."""

    size: int = 1_000
    """Numbers in each gradient."""

    cosine: float = -0.3
    """Cosine of every two gradients. Below 0 they conflict. It must be above -1/(T - 1), because T directions cannot
    all be further apart."""

    norm_ratio: float = 100.0
    """Norm of the largest gradient. The smallest has norm 1."""

    noise: float = 0.3
    """Noise that is added to the gradients at each step, as a share of their norm."""

    steps: int = 10
    """Number of times that the gradients are balanced."""

    mu: float = 0.9
    """RGB's momentum of the consensus direction."""

    lambd: float = 1.0
    """RGB's weight of staying close to the task's own direction."""

    alpha_steps: int = 3
    """RGB's steps on the angles in each update."""

    lr_inner: float = 0.2
    """RGB's step size on the angles."""

    update_interval: int = 1
    """RGB's number of updates between rotations."""

    def __post_init__(self) -> None:
        """Check the sizes of the gradients. RGB checks its own settings."""
        super().__post_init__()
        tasks = check_number("tasks", self.tasks, least=2, most=10, whole=True)
        check_number("size", self.size, least=tasks, most=LARGEST // tasks, whole=True)
        if not -1 / (tasks - 1) < self.cosine < 1:
            lowest = f"-1/{tasks - 1} = {-1 / (tasks - 1):.3f}"
            raise ValueError(f"cosine is {self.cosine}; for {tasks} tasks it must be above {lowest} and below 1")
        if not 1 <= self.norm_ratio <= 1e12:
            raise ValueError(f"norm_ratio is {self.norm_ratio}; it must be between 1 and 1e12")
        if not 0 <= self.noise <= 1e6:
            raise ValueError(f"noise is {self.noise}; it must be between 0 and 1e6")
        check_number("steps", self.steps, least=1, most=10_000, whole=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Balance the gradients and return the exit status."""
    address = "experiments.demonstrations.gradients:balance"
    return run(address, BalancingConfig, argv, prog="experiments.demonstrations.rgb_balancing")


if __name__ == "__main__":
    sys.exit(main())
