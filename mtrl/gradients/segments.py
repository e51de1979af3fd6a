"""How the graph of several losses is cut into parts that backward passes take one after the other."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mtrl.gradients.graph import Edge, leaf_of


@dataclass(frozen=True)
class Segment:
    """A part of the graph, through which backward passes advance in one go."""

    starts: list[Edge]  # where gradients enter the segment
    stops: list[Edge]  # where gradients leave it
    leaves: list[Tensor]  # the parameters that gradients reach inside it
    complete: set[int]  # ids of the leaves that no later segment reaches
    blocked: list[Any]  # nodes of stops that lead on to other stops or leaves; passes must be stopped there


def cut(roots: Sequence[Edge], limit: int) -> list[Segment]:
    """Cut the graph into segments whose parameters have about `limit` numbers at most; see `parts_of`."""
    order, children = in_order([node for node, _ in roots])
    last_use = _last_use(order, children)
    position = {node: index for index, node in enumerate(order)}
    below = dict.fromkeys(order, 0)  # for each node, the set of nodes that it leads to, as the bits of one integer
    for node in reversed(order):
        for child, _ in children[node]:
            below[node] |= below[child] | 1 << position[child]

    segments = []
    pending = dict.fromkeys(roots)
    for part in parts_of(order, children, limit):
        inside = set(part)
        away = [(child, number) for node in part for child, number in children[node] if child not in inside]
        leaves = {child: leaf_of(child) for child, _ in away if leaf_of(child) is not None}
        stops = {edge: None for edge in away if edge[0] not in leaves}
        targets = 0
        for node in (nodes := dict.fromkeys(child for child, _ in away)):
            targets |= 1 << position[node]
        segments.append(
            Segment(
                starts=[edge for edge in pending if edge[0] in inside],
                stops=list(stops),
                leaves=list(leaves.values()),
                complete={id(leaf) for node, leaf in leaves.items() if last_use[node] in inside},
                blocked=[node for node in nodes if below[node] & targets],
            )
        )
        pending = {edge: None for edge in (*pending, *stops) if edge[0] not in inside}
    return segments


def parts_of(order: Sequence[Any], children: dict[Any, list[Edge]], limit: int) -> list[list[Any]]:
    """Divide the nodes that are not leaves into parts, keeping their order.

    The parameters whose gradients are complete after a part have at most `limit` numbers together, or belong to one
    node. A node between another node and its parameter, such as the transposition of a linear layer's matrix, is in the
    same part, so that the gradient of the parameter is not held on both sides of it.
    """
    last_use = _last_use(order, children)
    numbers = dict.fromkeys(order, 0)
    for leaf, node in last_use.items():
        numbers[node] += leaf_of(leaf).numel()
    groups: list[list[Any]] = []
    for node in order:
        if leaf_of(node) is not None:
            continue
        if not groups or any(leaf_of(child) is None for child, _ in children[node]):
            groups.append([])
        groups[-1].append(node)
    parts: list[list[Any]] = [[]]
    size = 0
    for group in groups:
        of_group = sum(numbers[node] for node in group)
        if size and size + of_group > limit:
            parts.append([])
            size = 0
        parts[-1] += group
        size += of_group
    return parts


def _last_use(order: Sequence[Any], children: dict[Any, list[Edge]]) -> dict[Any, Any]:
    """For each leaf, the last node of the order that adds to its gradient."""
    return {child: node for node in order for child, _ in children[node] if leaf_of(child) is not None}


def in_order(roots: Sequence[Any]) -> tuple[list[Any], dict[Any, list[Edge]]]:
    """All nodes, each before the nodes that it leads to and side branches before the trunk, and the edges of each."""
    children: dict[Any, list[Edge]] = {}
    queue = list(dict.fromkeys(roots))
    while queue:
        node = queue.pop()
        if node not in children:
            children[node] = [(child, number) for child, number in node.next_functions if child is not None]
            queue += [child for child, _ in children[node]]
    height = dict.fromkeys(children, 1)
    for node in reversed(_sorted(children, dict.fromkeys(children, 0))):
        height[node] += max((height[child] for child, _ in children[node]), default=0)
    return _sorted(children, height), children


def _sorted(children: dict[Any, list[Edge]], key: dict[Any, int]) -> list[Any]:
    """All nodes in an order in which each comes before the nodes that it leads to; smaller keys come first."""
    uses = dict.fromkeys(children, 0)
    for edges in children.values():
        for child, _ in edges:
            uses[child] += 1
    number = itertools.count()  # decides between equal keys
    ready = [(key[node], next(number), node) for node, count in uses.items() if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        *_, node = heapq.heappop(ready)
        order.append(node)
        for child, _ in children[node]:
            uses[child] -= 1
            if not uses[child]:
                heapq.heappush(ready, (key[child], next(number), child))
    return order
