"""The tokenizer learns at a rate of its own."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, perceiver: nn.Module, lr: float, perceiver_lr_multiplier: float = 1.5
) -> list[dict[str, Any]]:
    """Groups for a PyTorch optimizer: the model's parameters at `lr`, the perceiver's at a multiple of it.

    A learning rate belongs to the optimizer: a weight on `perceiver_loss` would do nothing to parameters that only this
    loss trains, under Adam, and would change what the balancer sees of the shared ones.

    Args:
        model: of which `perceiver` is a part, or not.
        perceiver: the tokenizer.
        lr: learning rate.
        perceiver_lr_multiplier: of the perceiver's. Default 1.5.

    Returns:
        Two groups, for `torch.optim.Adam(parameter_groups(...))`; no parameter is in both.
    """
    own = list(perceiver.parameters())
    chosen = {id(parameter) for parameter in own}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [{"params": rest, "lr": lr}, {"params": own, "lr": lr * perceiver_lr_multiplier}]
