"""The gradient of a loss one step ahead of the present parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor

from mtrl.gradients import ParameterLayout


class LookaheadGuidance:
    """The function `step -> grad L_guide(theta - step)` of any PyTorch model, for `Balancer.set_guidance`.

        guidance = LookaheadGuidance(lambda: criterion(model(held_out.x), held_out.y), model.encoder.parameters())
        aim.set_guidance(guidance, eta=learning_rate)

    During a call the parameters are `theta - step`. Afterwards they get their old storage back, so that not a bit of
    them changes, even if the loss raises an error. Their `.grad` is never touched.

    Args:
        loss: a function that computes the guidance loss, a scalar, at the present parameters. It should depend on
            nothing but the parameters and held-out data, and it should change nothing: put layers with batch statistics
            or dropout in `eval` mode.
        parameters: the shared parameters, in the order of the Jacobian's rows; frozen ones are left out.

    Attributes:
        layout: the parameters as one vector.
        value: the loss at the last call, detached; None before the first call.

    Raises:
        ValueError: there is no trainable parameter.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Iterable[Tensor]) -> None:
        self.layout = ParameterLayout(p for p in parameters if p.requires_grad)
        self.value: Tensor | None = None
        self._loss = loss

    def __call__(self, step: Tensor) -> Tensor:
        """The gradient (D,) at `theta - step`. It is zero for a parameter that the loss does not depend on.

        Raises:
            ValueError: `step` is not of shape (D,), or the loss depends on no parameter.
        """
        layout = self.layout
        if step.shape != (layout.size,):
            raise ValueError(f"got a step of shape {tuple(step.shape)} for {layout.size} shared parameters")
        theta = [parameter.data for parameter in layout.parameters]
        try:
            for parameter, here, move in zip(layout.parameters, theta, layout.split(step), strict=True):
                parameter.data = here - move
            with torch.enable_grad():
                loss = self._loss()
                if not loss.requires_grad:
                    raise ValueError("the guidance loss does not depend on any parameter")
                gradients = torch.autograd.grad(loss, layout.parameters, allow_unused=True)
        finally:
            for parameter, here in zip(layout.parameters, theta, strict=True):
                parameter.data = here
        self.value = loss.detach()
        return torch.cat(
            [
                torch.zeros_like(here).flatten() if gradient is None else gradient.flatten()
                for here, gradient in zip(theta, gradients, strict=True)
            ]
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return this object itself, because a copy could not copy the model that the loss refers to."""
        return self
