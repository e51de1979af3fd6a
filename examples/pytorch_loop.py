"""A balancer in a plain PyTorch loop: two regressions on one encoder, one of them in units a hundred times as large.

    python examples/pytorch_loop.py
    python examples/pytorch_loop.py --balancer equal

One line differs from a loop without balancing: `balancer.backward(losses, encoder)` in place of
`sum(losses.values()).backward()`. Every head gets its own ordinary gradient. `equal` is the sum, which the task with
the large numbers rules.
"""

import argparse

import torch
from torch import nn

from mtrl import make_balancer


def main() -> None:
    """Train, and print each task's error as a share of the variance of its target."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--balancer", default="rgb")
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()

    torch.manual_seed(0)
    inputs = torch.randn(1_024, 8)
    targets = {"metres": inputs[:, :1].sin() + inputs[:, 1:2], "centimetres": 100 * (inputs[:, :1] * inputs[:, 2:3])}

    encoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    heads = nn.ModuleDict({task: nn.Linear(64, 1) for task in targets})
    balancer = make_balancer(args.balancer, len(targets))
    optimizer = torch.optim.Adam([*encoder.parameters(), *heads.parameters()], 3e-3)

    for step in range(args.steps):
        rows = torch.randint(len(inputs), (128,))
        z = encoder(inputs[rows])
        losses = {task: nn.functional.mse_loss(heads[task](z), targets[task][rows]) for task in targets}
        optimizer.zero_grad()
        weights = balancer.backward(losses, encoder)
        optimizer.step()
        if (step + 1) % max(args.steps // 5, 1) == 0:
            print(f"step {step + 1}: weights " + " ".join(f"{weight:.2f}" for weight in weights.tolist()))

    with torch.no_grad():
        for task, target in targets.items():
            error = nn.functional.mse_loss(heads[task](encoder(inputs)), target) / target.var()
            print(f"{task}: {error:.1%} of the variance is left")


if __name__ == "__main__":
    main()
