"""PyTorch Lightning with manual optimisation: the balancer takes the place of `manual_backward`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.outside.reference import Heads, backward_by_hand, batch, eager, every_balancer, every_engine, shared_of_heads

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pl: Any = pytest.importorskip("pytorch_lightning")

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning's own, about workers and loggers
STEPS = 3


class Module(pl.LightningModule):  # type: ignore[misc]
    """A `Heads` model whose balancer is a submodule, so that Lightning moves and saves it."""

    def __init__(
        self, name: str = "gradnorm", low_memory: bool = False, clip: float | None = None, lr: float = 0.02
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = Heads()
        self.balancer = eager(name)
        self.low_memory, self.clip, self.lr = low_memory, clip, lr

    def training_step(self, x: Tensor, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        losses = list(self.model(x))
        weights = self.balancer.backward(losses, self.model.encoder.parameters(), low_memory=self.low_memory)
        if self.clip is not None:
            self.clip_gradients(optimizer, self.clip, "norm")
        optimizer.step()
        self.log_dict({f"weight/{task}": float(weight) for task, weight in enumerate(weights)})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), self.lr)


def trainer(folder: Path, **kwargs: Any) -> Any:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **kwargs,
    )


def batches() -> Any:
    return torch.utils.data.DataLoader([batch(step) for step in range(STEPS)], batch_size=None)


@every_balancer
@every_engine
def test_a_lightning_run_is_the_plain_loop(name: str, low_memory: bool, tmp_path: Path) -> None:
    module = Module(name, low_memory)
    of_trainer = trainer(tmp_path)
    of_trainer.fit(module, batches())
    assert of_trainer.global_step == STEPS
    twin, by_hand = Heads(), eager(name)
    optimizer = torch.optim.SGD(twin.parameters(), 0.02)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward_by_hand(by_hand, list(twin(batch(step))), shared_of_heads(twin), twin.heads.parameters())
        optimizer.step()
    for actual, expected in zip(module.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["gradnorm", "rgb", "aim"])
def test_a_checkpoint_carries_the_balancer(name: str, tmp_path: Path) -> None:
    module, of_trainer = Module(name), trainer(tmp_path)
    of_trainer.fit(module, batches())
    of_trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = Module(name)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    other.load_state_dict(state)
    for (key, actual), expected in zip(
        other.balancer.state_dict().items(), module.balancer.state_dict().values(), strict=True
    ):
        if isinstance(expected, Tensor):
            torch.testing.assert_close(actual, expected, equal_nan=True, msg=lambda text, key=key: f"{key}: {text}")


def test_lightnings_clipping_sees_the_balanced_gradient(tmp_path: Path) -> None:
    module = Module("pcgrad", clip=1e-3)
    before = [parameter.detach().clone() for parameter in module.model.parameters()]
    trainer(tmp_path, max_steps=1).fit(module, batches())
    moved = torch.cat([(p - old).flatten() for p, old in zip(module.model.parameters(), before, strict=True)]).norm()
    torch.testing.assert_close(float(moved), 0.02 * 1e-3, rtol=1e-3, atol=0)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions_of_the_trainer(precision: Any, tmp_path: Path) -> None:
    module = Module("rgb", lr=1e-4)
    if precision == "bf16-mixed":
        module.float()
    x = batch(0) if precision == "64-true" else batch(0).float()
    loader = torch.utils.data.DataLoader([x] * STEPS, batch_size=None)
    first = sum(loss.item() for loss in module.model(x))
    trainer(tmp_path, precision=precision).fit(module, loader)
    assert sum(loss.item() for loss in module.model(x)) < first
