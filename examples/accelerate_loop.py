"""A balancer with Hugging Face Accelerate: `balancer.backward` in place of `accelerator.backward`.

    pip install accelerate
    python examples/accelerate_loop.py
    torchrun --nproc-per-node 2 examples/accelerate_loop.py

Give the shared parameters, as data-parallel runs need it: each task's gradient is averaged over the processes before it
is balanced. `register_for_checkpointing` keeps the balancer in `accelerator.save_state`.
"""

import argparse

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mtrl import PCGrad


class TwoTasks(nn.Module):
    """An encoder and a head for each of two regressions; `forward` gives their losses."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(64, 1) for _ in range(2))

    def forward(self, inputs: torch.Tensor, *targets: torch.Tensor) -> list[torch.Tensor]:
        """One loss per task."""
        z = self.encoder(inputs)
        return [nn.functional.mse_loss(head(z), target) for head, target in zip(self.heads, targets, strict=True)]


def main() -> None:
    """Train, and print the last losses."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()

    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    inputs = torch.randn(1_024, 8)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :1].sin(), inputs[:, 1:2].cos()), batch_size=128, shuffle=True)
    model, balancer = TwoTasks(), PCGrad(num_tasks=2)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.Adam(model.parameters(), 3e-3), loader)
    accelerator.register_for_checkpointing(balancer)
    for _ in range(args.epochs):
        for batch in loader:
            optimizer.zero_grad()
            losses = model(*batch)
            balancer.backward(losses, accelerator.unwrap_model(model).encoder)
            optimizer.step()
    accelerator.print("losses: " + ", ".join(f"{loss.item():.3g}" for loss in losses))


if __name__ == "__main__":
    main()
