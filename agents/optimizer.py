"""Adam over a network that is one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class FlatAdam(torch.optim.Adam):
    """`torch.optim.Adam` over one vector on which `update` takes the same step as `step`, in half the time.

    `step` gathers parameters into lists, asks for hooks and profilers and sorts by device, which at the sizes of
    reinforcement learning costs more than the step itself. State and settings are the base class's.

    Args:
        vector: the parameters (D,); see `ParameterLayout.flatten_`.
        lr: learning rate.
        weight_decay: decoupled from the gradient, as in AdamW (Loshchilov & Hutter 2019,
            https://arxiv.org/abs/1711.05101). Default 0.
    """

    def __init__(self, vector: nn.Parameter, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__([vector], lr, weight_decay=weight_decay, decoupled_weight_decay=True, fused=True)
        self._vector = vector

    @torch.no_grad()
    def update(self, gradient: Tensor) -> None:
        """Take one step along `gradient` (D,), whatever `.grad` is."""
        vector, state, (group,) = self._vector, self.state[self._vector], self.param_groups
        if not state:  # `step` knows how to begin
            vector.grad = gradient
            self.step()
            vector.grad = None
            return
        beta1, beta2 = group["betas"]
        adam(
            [vector],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            foreach=False,
            fused=True,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
