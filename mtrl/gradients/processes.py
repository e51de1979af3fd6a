"""The processes of a data-parallel run, over which gradients and losses are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | Literal["world"] | None


class Ranks:
    """The processes that train one model together, each on its own share of every batch.

    A balancer is not linear in the gradients. Each task's gradient therefore has to be averaged over the processes
    before the Gramian is formed: a mean of the processes' Gramians or updates would be wrong.

    Args:
        group: the process group. `"world"` is the default group of `torch.distributed`, or this process alone as long
            as that is not initialised; None is this process alone. Default `"world"`.

    Raises:
        ValueError: `group` is a string other than `"world"`.
    """

    def __init__(self, group: Group = "world") -> None:
        if isinstance(group, str) and group != "world":
            raise ValueError(f"unknown group {group!r}; give 'world', None or a process group")
        self._group = group

    def count(self) -> int:
        """The number of processes."""
        if self._group is None or not dist.is_available() or not dist.is_initialized():
            return 1
        return dist.get_world_size(None if isinstance(self._group, str) else self._group)

    def mean_(self, tensor: Tensor) -> Tensor:
        """Average `tensor` over the processes, in place; every process must call this, with the same shape."""
        count = self.count()
        if count > 1:
            self._reduce(tensor, dist.ReduceOp.SUM)
            tensor.div_(count)
        return tensor

    def mean_all_(self, tensors: Sequence[Tensor]) -> None:
        """Average several tensors over the processes, in place."""
        if self.count() > 1:
            for tensor in tensors:
                self.mean_(tensor)

    def mean_of(self, pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Parameters and their gradients, averaged over the processes; the gradients that are given do not change."""
        if self.count() == 1:
            return pairs
        return [(parameter, self.mean_(gradient.clone())) for parameter, gradient in pairs]

    def any(self, flags: Sequence[bool], device: torch.device) -> list[bool]:
        """Which of the flags are set on any process."""
        if self.count() == 1:
            return list(flags)
        numbers = torch.tensor(flags, dtype=torch.int64, device=device)
        self._reduce(numbers, dist.ReduceOp.MAX)
        return numbers.bool().tolist()

    def differing(self, numbers: Sequence[int], device: torch.device) -> list[int]:
        """The places in `numbers`, whole numbers, where the processes differ; tensors on `device` are exchanged."""
        if self.count() == 1:
            return []
        both = torch.tensor([*numbers, *(-number for number in numbers)], device=device)
        self._reduce(both, dist.ReduceOp.MAX)
        highest, lowest = both[: len(numbers)], -both[len(numbers) :]
        return (highest != lowest).nonzero().flatten().tolist()

    def _reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
        dist.all_reduce(tensor, operation, None if isinstance(self._group, str) else self._group)
