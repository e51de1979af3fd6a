"""The gradient of a loss one step ahead of the present parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from mtrl.gradients import ParameterLayout
from mtrl.limits import check_choice

GuidanceLoss = Literal["sum", "log_sum", "unit_norm"]


class LookaheadGuidance:
    """The function `step -> grad L_guide(theta - step)` of any PyTorch model, for `Balancer.set_guidance`.

        guidance = LookaheadGuidance(lambda: criterion(model(held_out.x), held_out.y), model.encoder.parameters())
        aim.set_guidance(guidance, eta=learning_rate)

    During a call the parameters are `theta - step`. Afterwards they get their old storage back, so that not a bit of
    them changes, even if the loss raises an error. Their `.grad` is never touched.

    The loss may also return the held-out losses L_t of the T tasks, which `guidance_loss` then combines:

        sum:        L_guide = sum_t L_t,           h = sum_t h_t,           h_t = grad L_t(theta - step)
        log_sum:    L_guide = sum_t log L_t,       h = sum_t h_t / L_t
        unit_norm:                                 h = sum_t h_t / |h_t|

    In a sum the tasks with large losses decide. `log_sum` and `unit_norm` do not change when a loss is multiplied by a
    number. `log_sum` also says that a task whose loss could still fall by a large part counts more than one that can
    learn no more, such as a task of noise; it needs positive losses. `unit_norm` takes losses of any sign, and a
    backward pass for each.

    Args:
        loss: a function that computes the guidance loss, a scalar, or the losses of the tasks, (T,) or T scalars, at
            the present parameters. It should depend on nothing but the parameters and held-out data, and it should
            change nothing: put layers with batch statistics or dropout in `eval` mode.
        parameters: the shared parameters, in the order of the Jacobian's rows; frozen ones are left out.
        guidance_loss: `"sum"`, `"log_sum"` or `"unit_norm"`. Default `"sum"`.

    Attributes:
        layout: the parameters as one vector.
        value: L_guide at the last call, detached; the plain sum with `"unit_norm"`, and None before the first call.

    Raises:
        ValueError: there is no trainable parameter, or `guidance_loss` is unknown.
    """

    def __init__(
        self,
        loss: Callable[[], Tensor | Sequence[Tensor]],
        parameters: Iterable[Tensor],
        guidance_loss: GuidanceLoss = "sum",
    ) -> None:
        check_choice("guidance_loss", guidance_loss, get_args(GuidanceLoss))
        self.guidance_loss: GuidanceLoss = guidance_loss
        self.layout = ParameterLayout(p for p in parameters if p.requires_grad)
        self.value: Tensor | None = None
        self._loss = loss

    def __call__(self, step: Tensor) -> Tensor:
        """The gradient (D,) at `theta - step`. It is zero for a parameter that the loss does not depend on.

        Raises:
            ValueError: `step` is not of shape (D,); the loss depends on no parameter; or `"log_sum"` meets a loss that
                is negative or not finite.
        """
        layout = self.layout
        if step.shape != (layout.size,):
            raise ValueError(f"got a step of shape {tuple(step.shape)} for {layout.size} shared parameters")
        theta = [parameter.data for parameter in layout.parameters]
        try:
            for parameter, here, move in zip(layout.parameters, theta, layout.split(step), strict=True):
                parameter.data = here - move
            with torch.enable_grad():
                found = self._loss()
                losses = found if isinstance(found, Tensor) else torch.stack(list(found))
                if not losses.requires_grad:
                    raise ValueError("the guidance loss does not depend on any parameter")
                gradient = self._gradient(losses)
        finally:
            for parameter, here in zip(layout.parameters, theta, strict=True):
                parameter.data = here
        self.value = losses.detach().log().sum() if self.guidance_loss == "log_sum" else losses.detach().sum()
        return gradient

    def _gradient(self, losses: Tensor) -> Tensor:
        """The gradient h (D,) of the combined losses, () or (T,), at the present parameters."""
        if self.guidance_loss == "unit_norm":
            parts = losses.reshape(-1).unbind()
            rows = [self._row(part, retain_graph=part is not parts[-1]) for part in parts if part.requires_grad]
            return combined(torch.stack(rows), losses.detach(), self.guidance_loss)
        if self.guidance_loss == "log_sum":
            losses = per_loss(losses.detach()) * losses
        return self._row(losses.sum())

    def _row(self, loss: Tensor, retain_graph: bool = False) -> Tensor:
        """The gradient (D,) of a scalar."""
        parameters = self.layout.parameters
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=retain_graph)
        return torch.cat(
            [
                torch.zeros_like(parameter).flatten() if gradient is None else gradient.flatten()
                for parameter, gradient in zip(parameters, gradients, strict=True)
            ]
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return this object itself, because a copy could not copy the model that the loss refers to."""
        return self


def combined(rows: Tensor, losses: Tensor, guidance_loss: GuidanceLoss) -> Tensor:
    """The guidance gradient h (D,) from the gradients `rows` (T, D) of the held-out losses (T,).

    See `LookaheadGuidance` for the three ways. A gradient of 0 counts for nothing.

    Raises:
        ValueError: `guidance_loss` is `"log_sum"`, and a loss is negative or not finite.
    """
    if guidance_loss == "log_sum":
        return per_loss(losses) @ rows
    if guidance_loss == "unit_norm":
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return (rows / torch.where(norms > 0, norms, 1.0)).sum(0)
    return rows.sum(0)


def per_loss(losses: Tensor) -> Tensor:
    """1 / L_t for each loss, which is d log L_t / d L_t; 0 for a loss of 0, which can fall no further.

    Raises:
        ValueError: a loss is negative or not finite.
    """
    for task, loss in enumerate(losses.reshape(-1).tolist()):
        if not 0 <= loss < float("inf"):
            raise ValueError(f"guidance_loss='log_sum' needs finite losses >= 0; task {task} has {loss}")
    return torch.where(losses > 0, 1 / losses, 0.0)
