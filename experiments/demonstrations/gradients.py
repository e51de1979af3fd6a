"""Balancing of synthetic task gradients, which conflict as much as the user asks, with RGB."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from experiments.demonstrations.rgb_balancing import BalancingConfig
from mtrl import RGB, Balance
from mtrl.conflict import conflict_share, cosines, norm_ratio
from mtrl.gradients import TaskGradients


def balance(config: BalancingConfig) -> None:
    """Balance the gradients `config.steps` times with a line of output each, then print the last step in full."""
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
        gradients = TaskGradients(mean + mean.norm(dim=1, keepdim=True) * noise)
        answer = rgb(gradients, torch.ones(config.tasks))
        J, angles = gradients.jacobian, answer.diagnostics["angle"]  # (T, D), (T,)
        turned = rotated(J, rgb, angles)
        shares = [float(conflict_share(rows @ rows.T)) for rows in (J, turned)]
        print(
            f"{step + 1:4}  {mean_cosine(J):10.3f} {mean_cosine(turned):10.3f}  {shares[0]:10.0%} {shares[1]:10.0%}"
            f"  {angles.rad2deg().mean():7.1f}°"
        )
    print(f"\nstep {config.steps}, task by task")
    _print_step(gradients, answer, turned)


def _print_step(gradients: TaskGradients, answer: Balance, turned: Tensor) -> None:
    """Print one step in full; `turned` are the unit gradients (T, D) after RGB's rotation."""
    J, update = gradients.jacobian, answer.update(gradients)
    total = J.sum(0)
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


def conflicting_gradients(
    num_tasks: int, size: int, cosine: float, norm_ratio: float, generator: torch.Generator
) -> Tensor:
    """Gradients (T, D) with the same cosine for every pair, and with norms from 1 to `norm_ratio`.

    Args:
        num_tasks: the number of gradients T.
        size: the length D of a gradient, at least T.
        cosine: the cosine of every pair, in (-1/(T - 1), 1), because T vectors cannot all be further apart.
        norm_ratio: the largest norm. The logarithms of the norms are evenly spaced.
        generator: the source of the random directions.
    """
    C = torch.full((num_tasks, num_tasks), cosine, dtype=torch.float64).fill_diagonal_(1.0)
    axes, _ = torch.linalg.qr(torch.randn(size, num_tasks, generator=generator, dtype=torch.float64))  # (D, T)
    norms = torch.tensor(norm_ratio, dtype=torch.float64) ** torch.linspace(0, 1, num_tasks, dtype=torch.float64)
    directions: Tensor = torch.linalg.cholesky(C) @ axes.T
    return norms.unsqueeze(1) * directions


def rotated(jacobian: Tensor, rgb: RGB, angles: Tensor) -> Tensor:
    """The unit gradients (T, D) after a rotation by `angles` (T,) from those of `jacobian` towards RGB's consensus."""
    unit = normalize(jacobian, dim=1)
    if rgb.consensus is None:
        return unit
    along = unit @ rgb.consensus
    across = normalize(rgb.consensus - along.unsqueeze(1) * unit, dim=1)
    return angles.cos().unsqueeze(1) * unit + angles.sin().unsqueeze(1) * across


def mean_cosine(jacobian: Tensor) -> float:
    """Mean cosine over the pairs of rows of `jacobian` (T, D)."""
    C, num_tasks = cosines(jacobian @ jacobian.T), len(jacobian)
    return float((C.sum() - C.trace()) / (num_tasks * (num_tasks - 1)))


def cosine_with(jacobian: Tensor, vector: Tensor) -> Tensor:
    """Cosine of each row of `jacobian` (T, D) with `vector` (D,); 0 if the vector is 0."""
    norms: Tensor = jacobian.norm(dim=1) * vector.norm()
    return (jacobian @ vector) / norms.clamp_min(1e-300)


def numbers(values: Iterable[Tensor]) -> str:
    """Numbers on one line."""
    return " ".join(f"{value.item():9.3f}" for value in values)
