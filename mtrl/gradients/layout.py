"""The parameters of a model as one vector."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn


class ParameterLayout:
    """Parameters laid end to end, as one vector of D numbers.

    Args:
        parameters: the tensors, in their order within the vector. A tensor that is given twice has one place.

    Attributes:
        parameters: the tensors, without duplicates.
        size: D.

    Raises:
        ValueError: there is no parameter.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = tuple({id(parameter): parameter for parameter in parameters}.values())
        if not self.parameters:
            raise ValueError("no parameters to take gradients of")
        self._slices: dict[int, slice] = {}
        start = 0
        for parameter in self.parameters:
            self._slices[id(parameter)] = slice(start, start + parameter.numel())
            start += parameter.numel()
        self.size = start

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self._slices

    def slice_of(self, layer: nn.Module | Tensor) -> slice:
        """The slice of the vector that holds a parameter, or a layer's weight matrix (its last, if it has several).

        Raises:
            ValueError: the parameter is not in the layout, or the layer has no weight matrix there.
        """
        if isinstance(layer, Tensor):
            if layer not in self:
                raise ValueError(f"a parameter of shape {tuple(layer.shape)} is not among the shared ones")
            return self._slices[id(layer)]
        matrices = [parameter for parameter in layer.parameters() if parameter.ndim >= 2 and parameter in self]
        if not matrices:
            raise ValueError(f"{type(layer).__name__} has no weight matrix among the shared parameters")
        return self.slice_of(matrices[-1])

    def slice_of_last(self, layer: nn.Module | Tensor | None) -> slice:
        """The slice on which norm-balancing methods measure.

        Args:
            layer: the last shared layer, or its weight matrix. Default: the last matrix of the layout, or the whole
                vector if it has no matrix.

        Raises:
            ValueError: as `slice_of`.
        """
        if layer is None:
            matrices = [parameter for parameter in self.parameters if parameter.ndim >= 2]
            layer = matrices[-1] if matrices else None
        return slice(None) if layer is None else self.slice_of(layer)

    def empty(self, *rows: int) -> Tensor:
        """An uninitialised tensor (*rows, D) on the parameters' device, of the widest of their dtypes."""
        dtype = reduce(torch.promote_types, (parameter.dtype for parameter in self.parameters))
        return torch.empty(*rows, self.size, dtype=dtype, device=self.parameters[0].device)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of `flat` (..., D): for each parameter its own slice, of shape (..., *parameter.shape)."""
        return [flat[..., self.slice_of(p)].view((*flat.shape[:-1], *p.shape)) for p in self.parameters]

    def flatten_(self) -> nn.Parameter:
        """Move the parameters into one vector (D,), make each of them a view of it, and return the vector.

        An optimizer then takes one step over the vector instead of one step for each parameter, and a network is
        copied in one operation. Moving the module to another device or dtype afterwards undoes this.
        """
        vector = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in self.parameters]))
        for parameter, view in zip(self.parameters, self.split(vector.data), strict=True):
            parameter.data = view
        return vector

    def accumulate_grad(self, vector: Tensor) -> None:
        """Add `vector` (D,) to the parameters' `.grad`, as a backward pass would."""
        parts = zip(self.parameters, self.split(vector), strict=True)
        accumulate((parameter, part.to(parameter.dtype)) for parameter, part in parts)


def accumulate(gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add to each parameter's `.grad`, as a backward pass would.

    Args:
        gradients: pairs of a parameter and its gradient. The gradients must not share memory with each other or with
            anything that the caller still uses, because a parameter without `.grad` keeps the tensor itself.
    """
    for parameter, gradient in gradients:
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
