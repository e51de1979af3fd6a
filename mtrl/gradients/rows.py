"""The gradients of T losses with respect to one parameter vector, and what balancers ask of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Literal, Protocol, TypeGuard

import torch
from torch import Tensor

from mtrl.gradients.layout import ParameterLayout, single_or_wider
from mtrl.gradients.processes import Ranks

Losses = Tensor | Sequence[Tensor]
Private = list[tuple[Tensor, Tensor]]  # parameters that belong to single tasks, each with its ordinary gradient
LooksAt = Literal["nothing", "rows", "gramian"]

# A sum of squares between these two numbers is exact up to rounding. The upper one is the largest number of the dtype.
# The lower one is its smallest normal number divided by its precision: smaller sums may have lost digits.
RANGES = {
    dtype: (limits.tiny / limits.eps, limits.max)
    for dtype in (torch.float32, torch.float64)
    for limits in (torch.finfo(dtype),)
}


class NonFiniteGradientError(FloatingPointError):
    """A task's gradient holds NaN or infinity; the message names the task.

    Args:
        message: one line.
        task: the number of the task; None if the gradient does not belong to a single task.
    """

    def __init__(self, message: str, task: int | None = None) -> None:
        super().__init__(message)
        self.task = task


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which products keep the dtype of `tensor`, even under `torch.autocast`."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class TaskGradients:
    """The gradients of T losses with respect to D shared parameters, and the few things that balancers ask of them.

    A task that is missing from a batch has no row: T is then the number of the tasks that are present.

    Args:
        jacobian: (T, D); row `i` is the gradient of loss `i`. Rows of half precision are held in float32.
        layer: the slice of the last shared layer, on which norm-balancing methods measure. Default: the whole row.
        mask: for each of all tasks, whether it has a row. Default: every task has one.
        losses: the losses (T,) themselves, detached.
        ranks: the processes over which rows and losses have been averaged. Default: this process alone.
        names: the names of all tasks. Default: their numbers.
    """

    def __init__(
        self,
        jacobian: Tensor,
        layer: slice = slice(None),
        *,
        mask: Sequence[bool] | None = None,
        losses: Tensor | None = None,
        ranks: Ranks | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self._jacobian = jacobian.to(single_or_wider(jacobian.dtype))
        self._layer = layer
        self.mask = None if mask is None or all(mask) else tuple(mask)
        self.losses = losses
        self.names = None if names is None else tuple(names)
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
        """The dtype in which the rows were computed; it limits how exact the numbers made from them are."""
        return self._jacobian.dtype

    @property
    def device(self) -> torch.device:
        """The device that holds the rows."""
        return self._jacobian.device

    def task(self, row: int) -> int:
        """The number of the task to which a row belongs, counted among all tasks, the missing ones included."""
        return row if self.mask is None else [task for task, there in enumerate(self.mask) if there][row]

    def name(self, row: int) -> str:
        """What messages call the task to which a row belongs."""
        task = self.task(row)
        return f"task {task if self.names is None else self.names[task]}"

    def free_graph(self) -> None:
        """Say that the next `combine` is the last thing asked. Gradients that are computed from a graph may free it."""

    @cached_property
    def _products(self) -> tuple[Tensor, list[float]]:
        with without_autocast(self.jacobian):
            return products_of_rows(self.jacobian)

    @property
    def gramian(self) -> Tensor:
        """`J J^T`, (T, T), in float64: the work on it is O(T^3) at most and should not lose digits."""
        return self._products[0]

    @property
    def squares(self) -> list[float]:
        """The squared norms of the rows (the diagonal of the Gramian), as T plain numbers."""
        return self._products[1]

    @cached_property
    def layer_norms(self) -> Tensor:
        """The Euclidean norm of each row over the slice of the last shared layer, (T,), float64."""
        return norms_of_rows(self.jacobian[:, self._layer])

    def prepare(self, looks_at: LooksAt) -> None:
        """Compute what a balancer is going to look at, and check that the rows are finite.

        Gradients that have not been computed yet may put the check off until `combine` if the balancer looks at
        nothing.

        Args:
            looks_at: see `Balancer.looks_at`.

        Raises:
            NonFiniteGradientError: a row holds NaN or infinity.
        """
        if looks_at == "gramian":
            _ = self.gramian  # a finite Gramian shows that the rows are finite, so they need not be read again
        self.check_finite()

    def check_finite(self) -> None:
        """Raise `NonFiniteGradientError` if a row holds NaN or infinity."""
        # One sum finds nearly every case at little cost, and rows are read one by one only if that sum is not finite.
        # If the squares are known, their sum costs even less: a number that is not finite makes its square so, too.
        known = "_products" in self.__dict__
        if math.isfinite(sum(self.squares) if known else self.jacobian.sum().item()):
            return
        for index, row in enumerate(self.jacobian):
            if not bool(row.isfinite().all()):
                raise NonFiniteGradientError(f"the gradient of {self.name(index)} is not finite", self.task(index))

    def dot(self, vector: Tensor) -> Tensor:
        """`J v` for `v` (D,): (T,), float64."""
        with without_autocast(self.jacobian):
            products: Tensor = self.jacobian @ vector
        return products.double()

    def combine(self, coefficients: Tensor, vector: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """`c J + f v`, the update direction (D,).

        Args:
            coefficients: c (T,).
            vector: v (D,), of the rows' dtype. Default: no vector is added.
            factor: f.
        """
        rows = self.jacobian
        with without_autocast(rows):
            largest, weights = RANGES[rows.dtype][1], coefficients.tolist()
            if not (max(weights) <= largest and min(weights) >= -largest):
                # A row that is very much smaller than the others may have such a coefficient. In float64 it does not
                # overflow, and the products are in the range of the rows' dtype again.
                combined = (coefficients.to(rows.device, torch.float64) @ rows.double()).to(rows.dtype)
                return combined if vector is None else combined.add_(vector, alpha=factor)
            if vector is None:
                return coefficients.to(rows) @ rows
            return torch.addmv(vector, rows.T, coefficients.to(rows), beta=factor)


def products_of_rows(rows: Tensor) -> tuple[Tensor, list[float]]:
    """`R R^T` (T, T), in float64, for `rows` R (T, n), and its diagonal as plain numbers."""
    rows = rows.to(single_or_wider(rows.dtype))
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
    """Whether the squared norms of rows, summed in `dtype`, neither overflowed nor lost digits to underflow.

    If so, the products of different rows did not either. The square of a zero row counts as an underflow, because the
    two cannot be told apart by the square.
    """
    least, most = RANGES[dtype]
    return sum(squares) < most and min(squares) > least


class TaskRows:
    """The buffer into which a backward pass writes the Jacobian: for each parameter a view of shape (T, *shape).

    A layer may be used several times in one forward pass. Its first use then writes, and the others add.
    """

    def __init__(self, layout: ParameterLayout, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self.jacobian = layout.empty(num_tasks)
        views = layout.split(self.jacobian)
        self._views = {id(parameter): view for parameter, view in zip(layout.parameters, views, strict=True)}
        self._written: set[int] = set()

    def start(self) -> None:
        """Begin an update: nothing has been written yet."""
        self._written.clear()

    def finish(self) -> None:
        """Set the rows of parameters that no layer has written to zero."""
        for key, view in self._views.items():
            if key not in self._written:
                view.zero_()

    def of(self, parameter: Tensor) -> Tensor:
        """The rows of one parameter, (T, *shape)."""
        return self._views[id(parameter)]

    def wanted(self, parameter: Tensor | None) -> TypeGuard[Tensor]:
        """Whether a layer has this parameter and it is trained."""
        return id(parameter) in self._views

    def add(self, parameter: Tensor, per_task: Tensor) -> None:
        """Add `per_task` (T, *shape)."""
        if self._first(parameter):
            self._views[id(parameter)].copy_(per_task)
        else:
            self._views[id(parameter)].add_(per_task)

    def add_sum(self, parameter: Tensor, per_row: Tensor) -> None:
        """Add the sum of `per_row` (T, B, *shape) over B."""
        if self._first(parameter):
            torch.sum(per_row, 1, out=self._views[id(parameter)])
        else:
            self._views[id(parameter)].add_(per_row.sum(1))

    def add_product(self, parameter: Tensor, left: Tensor, right: Tensor) -> None:
        """Add the batched product `left @ right`, (T, *shape)."""
        self._views[id(parameter)].baddbmm_(left, right, beta=0 if self._first(parameter) else 1)

    def _first(self, parameter: Tensor) -> bool:
        first = id(parameter) not in self._written
        self._written.add(id(parameter))
        return first


class GradientEngine(Protocol):
    """Turns T losses into `TaskGradients`. The package's docstring compares the engines."""

    layout: ParameterLayout

    def record(self) -> AbstractContextManager[None]:
        """A context manager around the forward pass that leads to the losses."""

    def backward(self, losses: Losses) -> TaskGradients:
        """The gradients of `losses` (T,), one row each. Parameters outside the layout get an ordinary `.grad`."""
