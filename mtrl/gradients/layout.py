"""The parameters of a model as one vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

Parameters = nn.Module | Tensor | Iterable[Tensor] | Mapping[str, Tensor]


class ParameterLayout:
    """Parameters laid end to end, as one vector of D numbers.

    Args:
        parameters: the tensors, in their order within the vector. A tensor that is given twice has one place.

    Attributes:
        parameters: the tensors, without duplicates.
        size: D.

    Raises:
        ValueError: there is no parameter, or one is complex.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = tuple({id(parameter): parameter for parameter in parameters}.values())
        if not self.parameters:
            raise ValueError("no parameters to take gradients of")
        for parameter in self.parameters:
            if parameter.is_complex():
                raise ValueError(
                    f"a shared parameter of shape {tuple(parameter.shape)} is complex, which is not supported; keep "
                    "its real and imaginary parts in a real parameter, and use torch.view_as_complex"
                )
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
        """An uninitialised tensor (*rows, D) on the parameters' device, in float32 or the widest of their dtypes."""
        dtype = single_or_wider(reduce(torch.promote_types, (parameter.dtype for parameter in self.parameters)))
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

    def gradients(self, vector: Tensor, reached: Sequence[bool]) -> list[tuple[Tensor, Tensor]]:
        """The parameters that a loss reaches, each with its own part of `vector` (D,), for `accumulate`."""
        parts = zip(self.parameters, self.split(vector), reached, strict=True)
        return [(parameter, part.to(parameter.dtype)) for parameter, part, is_reached in parts if is_reached]

    def accumulate_grad(self, vector: Tensor) -> None:
        """Add `vector` (D,) to the parameters' `.grad`; see `accumulate`."""
        accumulate(self.gradients(vector, [True] * len(self.parameters)))


def single_or_wider(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gradients of this dtype are worked with: half precision is too coarse for sums of products."""
    return torch.promote_types(dtype, torch.float32)


def accumulate(gradients: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Add to each parameter's `.grad` as a backward pass would: in place, in its layout, and with its hooks.

    Args:
        gradients: pairs of a parameter and its gradient.
    """
    if gradients:
        parameters, values = zip(*gradients, strict=True)
        torch.autograd.backward(parameters, values)


def as_parameters(parameters: Parameters) -> list[Tensor]:
    """The trainable parameters among those that a user gives as shared; frozen ones are left out.

    Args:
        parameters: a module, one parameter, or an iterable of parameters; of a mapping, its values.

    Raises:
        ValueError: there are none, or something is no parameter: another kind of object, the result of a computation,
            or a part of a sharded parameter.
    """
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    elif isinstance(parameters, Tensor):
        parameters = [parameters]
    elif isinstance(parameters, Mapping):
        parameters = parameters.values()
    elif not isinstance(parameters, Iterable):
        raise ValueError(f"parameters are a {type(parameters).__name__}; give a module or an iterable of parameters")
    given: list[Any] = list(parameters)
    if not given:
        raise ValueError("parameters are empty; a generator that is used up gives none: give a module or a list")
    for number, parameter in enumerate(given):
        if not isinstance(parameter, Tensor):
            kind = type(parameter).__name__
            raise ValueError(f"parameters hold a {kind} at place {number}; give a module or an iterable of parameters")
        if any(base.__name__ == "DTensor" for base in type(parameter).__mro__):
            raise ValueError("a shared parameter is a DTensor, as FSDP2 makes them, which is not supported")
        if not parameter.is_leaf:
            raise ValueError(
                f"the tensor of shape {tuple(parameter.shape)} among the parameters is no leaf of the graph, but was "
                "computed; give the parameters that it was computed from"
            )
    trainable = [parameter for parameter in given if parameter.requires_grad]
    if not trainable:
        raise ValueError("all given parameters are frozen: none has requires_grad")
    return trainable
