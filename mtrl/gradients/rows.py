"""Parameters as one vector, and the gradients of T losses with respect to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, reduce
from typing import Protocol

import torch
from torch import Tensor, nn

from mtrl.gradients.processes import Ranks

Losses = Tensor | Sequence[Tensor]
MaskedLosses = Tensor | Sequence[Tensor | None]  # None: a task without data in this batch
Private = list[tuple[Tensor, Tensor]]  # parameters of single tasks, each with its ordinary gradient


# Between these a sum of squares is exact but for rounding: the smallest normal number times 1 / eps, as what is below
# that number may be lost, and the largest.
RANGES = {
    dtype: (limits.tiny / limits.eps, limits.max)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for limits in (torch.finfo(dtype),)
}


class NonFiniteGradientError(FloatingPointError):
    """A task's gradient holds NaN or infinity; the message names the task.

    Args:
        message: one line.
        task: the task's number; None where it is not a single task's gradient.
    """

    def __init__(self, message: str, task: int | None = None) -> None:
        super().__init__(message)
        self.task = task


class ParameterLayout:
    """Parameters laid end to end as one vector of D numbers.

    Args:
        parameters: tensors, in the order in which they take their columns. Duplicates take one place.

    Raises:
        ValueError: there is no parameter.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = tuple({id(parameter): parameter for parameter in parameters}.values())
        if not self.parameters:
            raise ValueError("no parameters to take gradients of")
        self._columns: dict[int, slice] = {}
        start = 0
        for parameter in self.parameters:
            self._columns[id(parameter)] = slice(start, start + parameter.numel())
            start += parameter.numel()
        self.size = start

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self._columns

    def columns(self, parameter: Tensor) -> slice:
        """The columns of one parameter; raises `ValueError` for a tensor that is not in the layout."""
        try:
            return self._columns[id(parameter)]
        except KeyError:
            raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is not among the shared ones") from None

    def layer_columns(self, layer: nn.Module | Tensor) -> slice:
        """The columns of a layer's weight matrix (the last, if it has several), or of a parameter itself.

        Raises:
            ValueError: the layer has no matrix among the parameters.
        """
        if isinstance(layer, Tensor):
            return self.columns(layer)
        matrices = [parameter for parameter in layer.parameters() if parameter.ndim >= 2 and parameter in self]
        if not matrices:
            raise ValueError(f"{type(layer).__name__} has no weight matrix among the shared parameters")
        return self.columns(matrices[-1])

    def empty(self, *rows: int) -> Tensor:
        """An uninitialised tensor (*rows, D) of the parameters' device and dtype, the widest if they have several."""
        dtype = reduce(torch.promote_types, (parameter.dtype for parameter in self.parameters))
        return torch.empty(*rows, self.size, dtype=dtype, device=self.parameters[0].device)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of `flat` (..., D), one per parameter, of shape (..., *parameter.shape)."""
        return [flat[..., self.columns(p)].view((*flat.shape[:-1], *p.shape)) for p in self.parameters]

    def flatten_(self) -> nn.Parameter:
        """Move the parameters into one vector (D,), of which each becomes a view, and return that vector.

        An optimizer over the vector takes one step instead of one per parameter, and copying a network is one copy.
        Moving the module to another device or dtype afterwards undoes it.
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
    """Add to each parameter's `.grad`, as a backward pass would, given pairs of parameter and gradient.

    The gradients are the caller's to give away: no two share memory.
    """
    for parameter, gradient in gradients:
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Inside, products keep the dtype of `tensor`, even under `torch.autocast`."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class TaskGradients:
    """The gradients of T losses with respect to D shared parameters, and the few things balancers ask of them.

    Where tasks are missing from a batch, they have no row: T is then the number of tasks that are there.

    Args:
        jacobian: (T, D), row `i` is the gradient of loss `i`.
        layer: columns of the last shared layer, where norm-balancing methods measure; default all of them.
        mask: which of all tasks the rows belong to, bools; default: every task has its row.
        losses: the losses (T,) themselves, detached.
        ranks: the processes over which rows and losses have been averaged; default this one alone.

    Attributes:
        checked_when_combined: whether `combine` raises `NonFiniteGradientError` itself, so that a method that does
            nothing else with the rows need not have them checked before.
    """

    checked_when_combined = False

    def __init__(
        self,
        jacobian: Tensor,
        layer: slice = slice(None),
        *,
        mask: Sequence[bool] | None = None,
        losses: Tensor | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._jacobian = jacobian
        self._layer = layer
        self.mask = None if mask is None or all(mask) else tuple(mask)
        self.losses = losses
        self.ranks = Ranks(None) if ranks is None else ranks

    @property
    def jacobian(self) -> Tensor:
        """The rows, (T, D)."""
        return self._jacobian

    @property
    def num_tasks(self) -> int:
        """T, the number of rows."""
        return self._jacobian.shape[0]

    @property
    def size(self) -> int:
        """D, the length of a row."""
        return self._jacobian.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The rows' dtype, which tells how exact the numbers made from them are."""
        return self._jacobian.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._jacobian.device

    def task(self, row: int) -> int:
        """The task that a row belongs to, counted with those that are missing."""
        return row if self.mask is None else [task for task, there in enumerate(self.mask) if there][row]

    @cached_property
    def _products(self) -> tuple[Tensor, list[float]]:
        with without_autocast(self.jacobian):
            return products_of_rows(self.jacobian)

    @property
    def gramian(self) -> Tensor:
        """`J J^T`, (T, T), in float64: what follows it is O(T^3) at most and should not lose digits."""
        return self._products[0]

    @property
    def squares(self) -> list[float]:
        """The Gramian's diagonal, the rows' squared norms, as T plain numbers."""
        return self._products[1]

    @cached_property
    def layer_norms(self) -> Tensor:
        """Euclidean norm of each row over the last shared layer's columns, (T,), float64."""
        return norms_of_rows(self.jacobian[:, self._layer])

    def check_finite(self) -> None:
        """Raise `NonFiniteGradientError` if a row holds NaN or infinity."""
        # One sum sees nearly every case at little cost; rows are looked at one by one only when it is not finite. That
        # of known squares costs even less, and what is not finite in a row is not in its square either.
        known = "_products" in self.__dict__
        if math.isfinite(sum(self.squares) if known else self.jacobian.sum().item()):
            return
        for index, row in enumerate(self.jacobian):
            if not bool(row.isfinite().all()):
                task = self.task(index)
                raise NonFiniteGradientError(f"the gradient of task {task} is not finite", task)

    def dot(self, vector: Tensor) -> Tensor:
        """`J v` for `v` (D,): (T,), float64."""
        with without_autocast(self.jacobian):
            products: Tensor = self.jacobian @ vector
        return products.double()

    def combine(self, coefficients: Tensor, vector: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """`c J + f v`, the update direction (D,).

        Args:
            coefficients: c (T,).
            vector: v (D,), of the rows' dtype. Default: none.
            factor: f.
        """
        rows = self.jacobian
        with without_autocast(rows):
            largest, weights = RANGES[rows.dtype][1], coefficients.tolist()
            if not (max(weights) <= largest and min(weights) >= -largest):
                # Those of rows that are so much smaller than others; the products are in range again.
                combined = (coefficients.to(rows.device, torch.float64) @ rows.double()).to(rows.dtype)
                return combined if vector is None else combined.add_(vector, alpha=factor)
            if vector is None:
                return coefficients.to(rows) @ rows
            return torch.addmv(vector, rows.T, coefficients.to(rows), beta=factor)


def products_of_rows(rows: Tensor) -> tuple[Tensor, list[float]]:
    """`R R^T` (T, T), in float64, for `rows` (T, n), and its diagonal."""
    products = rows @ rows.T
    squares = products.diagonal().tolist()
    if in_range(squares, rows.dtype):
        return products.double(), squares
    products = rows.double() @ rows.double().T
    return products, products.diagonal().tolist()


def norms_of_rows(rows: Tensor) -> Tensor:
    """The Euclidean norms (T,), in float64, of `rows` (T, n)."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    if not in_range([norm * norm for norm in norms.tolist()], rows.dtype):
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.double()


def in_range(squares: Sequence[float], dtype: torch.dtype) -> bool:
    """Whether squares of rows, summed in `dtype`, are what they should be: none overflows or fades away.

    If so, neither do the products of different rows. A zero row counts as faded: who asks can't tell the two apart.
    """
    least, most = RANGES[dtype]
    return sum(squares) < most and min(squares) > least


class GradientEngine(Protocol):
    """What turns T losses into `TaskGradients`; see the package's docstring for the two kinds."""

    layout: ParameterLayout

    def record(self) -> AbstractContextManager[None]:
        """A context manager: the forward pass that leads to the losses runs inside."""

    def backward(self, losses: Losses) -> TaskGradients:
        """Gradients of `losses` (T,), one row each. Parameters outside the layout get an ordinary `.grad`."""
