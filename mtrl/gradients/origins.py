"""How losses that went through one tensor are separated again.

A loss may be a number of a tensor that holds the losses of all tasks. In the graph it then seems to depend on
everything that any task depends on. `Origins` goes back from the loss through operations that treat every number of a
tensor by itself (`stack`, `cat`, indexing, reshaping, and elementwise operations), and finds what this number was
computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtrl.gradients.graph import Edge, leaf_of, nodes_below, operation, shape_at

Place = tuple[Edge, int]  # a tensor in the graph and the index of a number in it, when it is flattened

LARGEST = 100_000  # numbers of a tensor in which the place of a loss is followed

# The operations are named as in the names of their nodes, without "Backward0".
ELEMENTWISE = frozenset(
    "Abs Add Alias Clamp ClampMax ClampMin Clone Div Exp Expm1 Lerp Log Log1P MaskedFill Maximum Minimum Mul NanToNum "  # noqa: SIM905
    "Neg Pow Reciprocal Relu Rsqrt Rsub Sigmoid Softplus Sqrt Sub Tanh ToCopy Where".split()
)
# The order of the numbers stays the same.
VIEWS = frozenset(["ReshapeAlias", "Squeeze", "UnsafeView", "Unsqueeze", "View"])
SELECTIONS: dict[str, Callable[[Any, Tensor, int], Tensor]] = {
    "Flip": lambda node, tensor, _: tensor.flip(node._saved_dims),
    "Index": lambda node, tensor, _: _indexed(node, tensor),
    "IndexSelect": lambda node, tensor, _: tensor.index_select(_signed(node._saved_dim), node._saved_index.cpu()),
    "Permute": lambda node, tensor, _: tensor.permute([_signed(dim) for dim in node._saved_dims]),
    "Select": lambda node, tensor, _: tensor.select(_signed(node._saved_dim), _signed(node._saved_index)),
    "Slice": lambda node, tensor, _: _sliced(node, tensor),
    "Split": lambda node, tensor, number: torch.split(tensor, node._saved_split_size, _signed(node._saved_dim))[number],
    "Unbind": lambda node, tensor, number: tensor.unbind(_signed(node._saved_dim))[number],
}
"""How an operation selects numbers of its operand, given its node, the operand and the number of the output."""


class Origins:
    """The places from which losses were computed; it remembers what it has learned of nodes that losses share."""

    def __init__(self) -> None:
        self._places: dict[Edge, list[Place | None]] = {}  # for each number of a result, where it comes from

    def of(self, edge: Edge) -> list[Place]:
        """The places from which the only number of a tensor was computed, as far as every number is treated by itself.

        If it was never a number of a larger tensor, the only place is the tensor itself.
        """
        waiting: list[Place] = [(edge, 0)]
        found: dict[Place, None] = {}
        seen: set[Place] = set()
        separated = False
        while waiting:
            place = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            operands = self._operands(*place)
            if operands is None:
                found[place] = None
            else:
                separated = separated or any(shape_at(other).numel() > 1 for other, _ in operands)
                waiting += operands
        if not separated or _one_below_another([node for (node, _), _ in found]):
            return [(edge, 0)]
        return list(found)

    def _operands(self, edge: Edge, place: int) -> list[Place] | None:
        """The places of operands that decide the number at `place` of a node's result; None if that is not known."""
        node, number = edge
        kind, children = operation(node), node.next_functions
        there = [child for child in children if child[0] is not None]
        if leaf_of(node) is not None or any(shape_at(other).numel() > LARGEST for other in (edge, *there)):
            return None
        if kind in ELEMENTWISE:
            shape = shape_at(edge)
            same = [shape_at(child) == shape for child in there]
            return [
                (child, place if is_same else int(_indices(child).expand(shape).reshape(-1)[place]))
                for child, is_same in zip(there, same, strict=True)
            ]
        if kind in VIEWS:
            return [(child, place) for child in there]
        if edge not in self._places:
            if kind in SELECTIONS:
                indices = SELECTIONS[kind](node, _indices(there[0]), number).reshape(-1).tolist()
                self._places[edge] = [(there[0], index) for index in indices]
            elif kind == "Stack" or (kind == "Cat" and len(there) == len(children)):
                self._places[edge] = _joined(node, there)
            else:
                return None
        origin = self._places[edge][place]
        return [] if origin is None else [origin]


def _joined(node: Any, there: Sequence[Edge]) -> list[Place | None]:
    """For each number of joined tensors, the place it comes from; None if that is in a tensor without a gradient."""
    join: Callable[[list[Tensor], int], Tensor] = torch.stack if operation(node) == "Stack" else torch.cat
    dim = _signed(node._saved_dim)
    like = _indices(there[0])  # a tensor without a gradient is not in the graph; in a stack, it has the others' shape
    parts = [like if child[0] is None else _indices(child) for child in node.next_functions]
    which = join([torch.full_like(part, index) for index, part in enumerate(parts)], dim)
    where = join(parts, dim)
    pairs = zip(which.reshape(-1).tolist(), where.reshape(-1).tolist(), strict=True)
    chosen = ((node.next_functions[part], index) for part, index in pairs)
    return [None if child[0] is None else (child, index) for child, index in chosen]


def _one_below_another(nodes: Sequence[Any]) -> bool:
    """Whether one of the nodes depends on another, so that gradients at both would count the other's twice."""
    if len(nodes) == 1:
        return False
    children = [child for node in dict.fromkeys(nodes) for child, _ in node.next_functions if child is not None]
    return not set(nodes).isdisjoint(nodes_below(children))


def _indices(edge: Edge) -> Tensor:
    """The indices of the numbers of a flattened tensor, in the tensor's shape."""
    shape = shape_at(edge)
    return torch.arange(shape.numel(), device="cpu").reshape(shape)


def _indexed(node: Any, tensor: Tensor) -> Tensor:
    return tensor[tuple(slice(None) if index is None else index.cpu() for index in node._saved_indices)]


def _sliced(node: Any, tensor: Tensor) -> Tensor:
    picked: list[slice] = [slice(None)] * tensor.ndim
    picked[_signed(node._saved_dim)] = slice(_signed(node._saved_start), _signed(node._saved_end), node._saved_step)
    return tensor[tuple(picked)]


def _signed(number: int) -> int:
    """Nodes show negative dimensions and indices as unsigned numbers of 64 bits."""
    return number - 2**64 if number >= 2**63 else number
