"""What autograd's graph tells about losses: the leaves that they depend on, and where that can't be told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

Edge = tuple[Any, int]  # a node of the graph and the number of one of its inputs in the backward pass

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


def shape_at(edge: Edge) -> torch.Size:
    """The shape of the tensor at a place of the graph."""
    node, number = edge
    leaf = leaf_of(node)
    return torch.Size(node._input_metadata[number].shape) if leaf is None else leaf.shape


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
