"""The gradient of a loss one step ahead of where the parameters stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor

from mtrl.gradients import ParameterLayout


class LookaheadGuidance:
    """`step -> grad L_guide(theta - step)` for any PyTorch model, as `AIM.set_guidance` takes it.

        guidance = LookaheadGuidance(lambda: criterion(model(held_out.x), held_out.y), model.encoder.parameters())
        aim.set_guidance(guidance, eta=learning_rate)

    During the call the parameters are `theta - step`. They are put back afterwards by handing them their old storage,
    so not a bit of them changes, whatever the loss does or raises; their `.grad` is never touched.

    Args:
        loss: the guidance loss as it stands, a scalar. It should depend on nothing but the parameters and data that
            they are not trained on, and change nothing: put layers with batch statistics or dropout in `eval` mode.
        parameters: the shared parameters, in the order of the Jacobian's columns; frozen ones are left out.

    Attributes:
        layout: the parameters as one vector.
        value: what the loss was at the last call, detached; None before.

    Raises:
        ValueError: there is no trainable parameter.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Iterable[Tensor]) -> None:
        self.layout = ParameterLayout(p for p in parameters if p.requires_grad)
        self.value: Tensor | None = None
        self._loss = loss

    def __call__(self, step: Tensor) -> Tensor:
        """The gradient (D,) at `theta - step`, zero for a parameter that the loss does not depend on.

        Raises:
            ValueError: `step` is not one number per parameter, or the loss depends on no parameter.
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
        """Itself: the loss refers to a model that a copy of this object could not bring along."""
        return self
