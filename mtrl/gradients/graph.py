"""What autograd's graph tells about losses: the leaves that they depend on, and how losses in one tensor are separated.

A loss may be a number of a tensor that holds the losses of all tasks. In the graph it then seems to depend on
everything that any task depends on. `origins` goes back from the loss through operations that treat every number of a
tensor by itself (`stack`, `cat`, indexing, reshaping, and elementwise operations), and finds what this number was
computed from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

Edge = tuple[Any, int]  # a node of the graph and the number of one of its inputs in the backward pass
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
    "IndexSelect": lambda node, tensor, _: tensor.index_select(_signed(node._saved_dim), node._saved_index.cpu()),
    "Permute": lambda node, tensor, _: tensor.permute([_signed(dim) for dim in node._saved_dims]),
    "Select": lambda node, tensor, _: tensor.select(_signed(node._saved_dim), _signed(node._saved_index)),
    "Slice": lambda node, tensor, _: _sliced(node, tensor),
    "Split": lambda node, tensor, number: torch.split(tensor, node._saved_split_size, _signed(node._saved_dim))[number],
    "Unbind": lambda node, tensor, number: tensor.unbind(_signed(node._saved_dim))[number],
}
"""How an operation selects numbers of its operand, given its node, the operand and the number of the output."""

# Operations that put numbers of several tensors into one. Numbers of their result may have nothing in common.
JOINS = frozenset(
    "Cat ConstantPadNd CopySlices IndexAdd IndexCopy IndexPut IndexPutImpl MaskedScatter Scatter ScatterAdd "  # noqa: SIM905
    "SelectScatter SliceScatter Stack Where".split()
)
# Functions in a graph that make it unfit for several backward passes, by their names, and what a message says.
UNFIT = {
    "CheckpointFunction": "a block runs under torch.utils.checkpoint with use_reentrant=True; set use_reentrant=False",
    "RegisterPostBackwardFunction": "the model is sharded by FSDP2, which is not supported",
}
# The functions by which modules run hooks of `register_full_backward_hook` and `register_full_backward_pre_hook`.
MODULE_HOOK = "BackwardHookFunction"


def operation(node: Any) -> str:
    """The name of the operation that a node of the graph differentiates, such as `Mul`."""
    return _operation(node.name())


@cache
def _operation(name: str) -> str:
    return re.sub(r"Backward\d*$", "", name).rpartition("::")[2]


def is_join(node: Any) -> bool:
    """Whether numbers of a node's result may have nothing in common; compiled and custom functions may do anything."""
    return isinstance(node, BackwardCFunction) or operation(node) in JOINS


def leaf_of(node: Any) -> Any:
    """The leaf whose gradient a node accumulates, or None."""
    return None if isinstance(node, BackwardCFunction) else getattr(node, "variable", None)


def nodes_below(roots: Iterable[Any]) -> Iterator[Any]:
    """The nodes `roots` and all that they depend on, the nearest first."""
    queue = list(dict.fromkeys(roots))
    seen = set(queue)
    while queue:
        following = []
        for node in queue:
            yield node
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    following.append(child)
        queue = following


def graph_leaves(*roots: Tensor | Any) -> list[Tensor]:
    """The trainable leaves that `roots`, tensors or nodes of the graph, depend on, the nearest first."""
    nodes = [root.grad_fn if isinstance(root, Tensor) else root for root in roots]
    leaves = (leaf_of(node) for node in nodes_below(node for node in nodes if node is not None))
    return list({id(leaf): leaf for leaf in leaves if leaf is not None}.values())


def origins(edge: Edge) -> list[Place]:
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
        operands = _operands(*place)
        if operands is None:
            found[place] = None
        else:
            separated = separated or any(numbers_at(other) > 1 for other, _ in operands)
            waiting += operands
    if not separated or _one_below_another([node for (node, _), _ in found]):
        return [(edge, 0)]
    return list(found)


def _one_below_another(nodes: Sequence[Any]) -> bool:
    """Whether one of the nodes depends on another, so that gradients at both would count the other's twice."""
    if len(nodes) == 1:
        return False
    children = [child for node in dict.fromkeys(nodes) for child, _ in node.next_functions if child is not None]
    return not set(nodes).isdisjoint(nodes_below(children))


def numbers_at(edge: Edge) -> int:
    """How many numbers the tensor at a place of the graph has."""
    return _shape(edge).numel()


def _operands(edge: Edge, place: int) -> list[Place] | None:
    """The places of a node's operands that decide the number at `place` of its result; None if that is not known."""
    node, number = edge
    kind, children = operation(node), list(node.next_functions)
    there = [child for child in children if child[0] is not None]
    if leaf_of(node) is not None or any(numbers_at(other) > LARGEST for other in (edge, *there)):
        return None
    if kind in ELEMENTWISE:
        shape = _shape(edge)
        return [(child, _picked(_places(child).expand(shape), place)) for child in there]
    if kind in VIEWS:
        return [(child, place) for child in there]
    if kind in SELECTIONS:
        return [(child, _picked(SELECTIONS[kind](node, _places(child), number), place)) for child in there]
    if kind == "Stack" or (kind == "Cat" and len(there) == len(children)):
        return _joined(node, there, place)
    return None


def _joined(node: Any, there: Sequence[Edge], place: int) -> list[Place]:
    """The place from which a number of joined tensors comes, or none if it comes from a tensor without a gradient."""
    join: Callable[[list[Tensor], int], Tensor] = torch.stack if operation(node) == "Stack" else torch.cat
    dim = _signed(node._saved_dim)
    like = _places(
        there[0]
    )  # tensors without a gradient are not in the graph; in a stack, they have the shape of others
    parts = [like if child[0] is None else _places(child) for child in node.next_functions]
    which = _picked(join([torch.full_like(part, index) for index, part in enumerate(parts)], dim), place)
    chosen = node.next_functions[which]
    return [] if chosen[0] is None else [(chosen, _picked(join(parts, dim), place))]


def _shape(edge: Edge) -> torch.Size:
    node, number = edge
    leaf = leaf_of(node)
    return torch.Size(node._input_metadata[number].shape) if leaf is None else leaf.shape


def _places(edge: Edge) -> Tensor:
    """The indices of the numbers of a flattened tensor, in the tensor's shape."""
    shape = _shape(edge)
    return torch.arange(shape.numel(), device="cpu").reshape(shape)


def _picked(places: Tensor, place: int) -> int:
    return int(places.reshape(-1)[place])


def _sliced(node: Any, tensor: Tensor) -> Tensor:
    picked: list[slice] = [slice(None)] * tensor.ndim
    picked[_signed(node._saved_dim)] = slice(_signed(node._saved_start), _signed(node._saved_end), node._saved_step)
    return tensor[tuple(picked)]


def _signed(number: int) -> int:
    """Nodes show negative dimensions and indices as unsigned numbers of 64 bits."""
    return number - 2**64 if number >= 2**63 else number


def shared_joins(tasks: Sequence[Sequence[Any]]) -> list[Any]:
    """The nodes that join numbers and that at least two tasks depend on, given the nodes where each task begins."""
    counts = Counter(node for roots in tasks for node in nodes_below(roots) if is_join(node))
    return [node for node, count in counts.items() if count > 1]


def check_functions(roots: Iterable[Any], unfit: Mapping[str, str] = UNFIT) -> None:
    """Check the functions in the graph below the nodes `roots`.

    Raises:
        ValueError: one of them is in `unfit`.
    """
    for node in nodes_below(roots):
        if isinstance(node, BackwardCFunction) and operation(node) in unfit:
            raise ValueError(unfit[operation(node)])
