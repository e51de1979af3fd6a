"""Parameter groups that give the tokenizer a learning rate of its own."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, perceiver: nn.Module, lr: float, perceiver_lr_multiplier: float = 1.5
) -> list[dict[str, Any]]:
    """Groups for a PyTorch optimizer: the model's parameters at `lr`, and the perceiver's at a multiple of it.

    A weight on `perceiver_loss` would not do the same. With Adam it has no effect on parameters that only this loss
    trains, and it would change the gradients of the shared parameters that the balancer sees.

    Args:
        model: the model. `perceiver` may be a part of it.
        perceiver: the tokenizer.
        lr: the learning rate of the model.
        perceiver_lr_multiplier: the learning rate of the perceiver, as a multiple of `lr`. Default 1.5.

    Returns:
        Two groups, for `torch.optim.Adam(parameter_groups(...))`; no parameter is in both groups.
    """
    own = list(perceiver.parameters())
    chosen = {id(parameter) for parameter in own}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [{"params": rest, "lr": lr}, {"params": own, "lr": lr * perceiver_lr_multiplier}]
