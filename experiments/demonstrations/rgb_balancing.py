"""`python -m experiments.demonstrations.rgb_balancing`: what RGB does to gradients that conflict."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.program.command import run

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 10_000_000  # numbers in all gradients together


@dataclass(frozen=True)
class BalancingConfig:
    """Balance synthetic gradients with RGB, and print their conflict before and after."""

    tasks: int = 4
    """How many gradients, from 2 to 10."""

    size: int = 1_000
    """Numbers in each gradient."""

    cosine: float = -0.3
    """Between every two gradients; below 0 they conflict. T gradients cannot all be further apart than -1/(T - 1)."""

    norm_ratio: float = 100.0
    """Norm of the largest gradient; that of the smallest is 1."""

    noise: float = 0.3
    """Of each step's gradients, as a share of their norm."""

    steps: int = 10
    """How many times the gradients are balanced."""

    mu: float = 0.9
    """Of RGB: how much of the consensus stays at each step."""

    lambd: float = 1.0
    """Of RGB: weight of staying near the gradient as it was."""

    alpha_steps: int = 3
    """Of RGB: steps that the angles take each time."""

    lr_inner: float = 0.2
    """Of RGB: rate of those steps."""

    update_interval: int = 1
    """Of RGB: rotate at every so many steps."""

    seed: int = 0
    """Of the gradients."""

    def __post_init__(self) -> None:
        """Check what the gradients need; RGB checks its own."""
        if not 2 <= self.tasks <= 10:
            raise ValueError(f"tasks is {self.tasks}; it must be between 2 and 10")
        if not self.tasks <= self.size <= LARGEST // self.tasks:
            raise ValueError(f"size is {self.size}; it must be between {self.tasks} and {LARGEST // self.tasks}")
        if not -1 / (self.tasks - 1) < self.cosine < 1:
            lowest = f"-1/{self.tasks - 1} = {-1 / (self.tasks - 1):.3f}"
            raise ValueError(f"cosine is {self.cosine}; for {self.tasks} tasks it must be above {lowest} and below 1")
        if not 1 <= self.norm_ratio <= 1e12:
            raise ValueError(f"norm_ratio is {self.norm_ratio}; it must be between 1 and 1e12")
        if not 0 <= self.noise <= 1e6:
            raise ValueError(f"noise is {self.noise}; it must be between 0 and 1e6")
        if not 1 <= self.steps <= 10_000:
            raise ValueError(f"steps is {self.steps}; it must be between 1 and 10000")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be between 0 and 2**63 - 1")


def demonstrate(config: BalancingConfig) -> None:
    """Balance the gradients `steps` times, a line for each; then the last step in full."""
    import torch  # noqa: PLC0415 - loads only when there is something to show

    from experiments.demonstrations.gradients import conflicting_gradients, mean_cosine, rotated  # noqa: PLC0415
    from mtrl import RGB  # noqa: PLC0415
    from mtrl.conflict import conflict_share, cosines, norm_ratio  # noqa: PLC0415
    from mtrl.gradients import TaskGradients  # noqa: PLC0415

    rgb = RGB(
        config.tasks,
        mu=config.mu,
        lambd=config.lambd,
        alpha_steps=config.alpha_steps,
        lr_inner=config.lr_inner,
        update_interval=config.update_interval,
    )
    generator = torch.Generator().manual_seed(config.seed)
    mean = conflicting_gradients(config.tasks, config.size, config.cosine, config.norm_ratio, generator)
    print(f"RGB on {config.tasks} gradients of {config.size:,} numbers, norms 1 to {config.norm_ratio:g}")
    print(f"{'':6}{'mean cosine':^23}{'conflicting pairs':^23}mean turn")
    print(f"step  {'before':>10} {'after':>10}  {'before':>10} {'after':>10}")
    for step in range(config.steps):
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype) * (config.noise / config.size**0.5)
        J = mean + mean.norm(dim=1, keepdim=True) * noise  # (T, D)
        gradients = TaskGradients(J)
        answer = rgb(gradients, torch.ones(config.tasks))
        turned = rotated(J, rgb, answer.diagnostics["angle"])
        shares = [float(conflict_share(rows @ rows.T)) for rows in (J, turned)]
        print(
            f"{step + 1:4}  {mean_cosine(J):10.3f} {mean_cosine(turned):10.3f}  {shares[0]:10.0%} {shares[1]:10.0%}"
            f"  {answer.diagnostics['angle'].rad2deg().mean():7.1f}°"
        )

    print(f"\nstep {config.steps}, task by task")
    total = J.sum(0)
    update = answer.update(gradients)
    rows = {
        "norm": J.norm(dim=1),
        "turned by, degrees": answer.diagnostics["angle"].rad2deg(),
        "coefficient in the update": answer.coefficients,
        "cosine with the update": cosine_with(J, update),
        "cosine with the plain sum": cosine_with(J, total),
    }
    for name, values in rows.items():
        print(f"  {name:27}{numbers(values)}")
    for name, vectors in {"before": J, "after": turned}.items():
        print(f"cosines {name}")
        for row in cosines(vectors @ vectors.T):
            print(f"  {'':27}{numbers(row)}")
    print(
        f"largest to smallest norm: {norm_ratio(gradients.gramian):.1f} before, 1.0 after (each task turns as a unit)"
    )
    print(f"norm of the update: {update.norm():.3f}, of the plain sum {total.norm():.3f}")
    lowest = [float(cosine_with(J, vector).min()) for vector in (update, total)]
    print(f"the task that is served least: cosine {lowest[0]:.3f} with the update, {lowest[1]:.3f} with the plain sum")


def cosine_with(jacobian: Tensor, vector: Tensor) -> Tensor:
    """Cosine of each row of `jacobian` (T, D) with `vector` (D,); 0 for a vector of 0."""
    norms: Tensor = jacobian.norm(dim=1) * vector.norm()
    return (jacobian @ vector) / norms.clamp_min(1e-300)


def numbers(values: Iterable[Tensor]) -> str:
    """One line of numbers."""
    return " ".join(f"{value.item():9.3f}" for value in values)


def main(argv: Sequence[str] | None = None) -> int:
    """Show it and return the exit status."""
    return run(demonstrate, BalancingConfig, argv, prog="experiments.demonstrations.rgb_balancing")


if __name__ == "__main__":
    sys.exit(main())
