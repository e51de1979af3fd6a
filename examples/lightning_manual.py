"""A balancer in PyTorch Lightning: manual optimisation, with `balancer.backward` in place of `manual_backward`.

    pip install pytorch-lightning
    python examples/lightning_manual.py

The balancer is a submodule, so that Lightning moves it to the device and keeps it in checkpoints.
"""

import argparse

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mtrl import GradNorm


class TwoTasks(pl.LightningModule):
    """An encoder and a head for each of two regressions."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
        self.heads = nn.ModuleDict({"small": nn.Linear(64, 1), "large": nn.Linear(64, 1)})
        self.balancer = GradNorm(num_tasks=2)

    def training_step(self, batch: list[torch.Tensor], index: int) -> None:
        """One step of the optimizer."""
        inputs, small, large = batch
        z = self.encoder(inputs)
        targets = {"small": small, "large": large}
        losses = {task: nn.functional.mse_loss(self.heads[task](z), targets[task]) for task in targets}
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.balancer.backward(losses, self.encoder)
        optimizer.step()
        self.log_dict(losses, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on everything that the model trains."""
        return torch.optim.Adam([*self.encoder.parameters(), *self.heads.parameters()], 3e-3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    pl.seed_everything(0)
    inputs = torch.randn(1_024, 8)
    data = TensorDataset(inputs, inputs[:, :1].sin(), 10 * inputs[:, 1:2].cos())
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=args.epochs, enable_progress_bar=False, **options)
    trainer.fit(TwoTasks(), DataLoader(data, batch_size=128, shuffle=True))
    print(", ".join(f"{task}: loss {float(loss):.3g}" for task, loss in trainer.callback_metrics.items()))
