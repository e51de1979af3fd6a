"""Replay with one ring of transitions per task."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.states import check_form


class TaskBatch(NamedTuple):
    """B transitions of each of T tasks, task-major: row `t * B + b` belongs to task `t`.

    All is float32 but discrete actions and, if there are images, observations; see `ObservationRows`.
    """

    observations: Tensor  # (T * B, O), or the bytes of observations with images
    next_observations: Tensor  # (T * B, O)
    actions: Tensor  # (T * B,), int64; or (T * B, A), continuous actions from -1 to 1
    rewards: Tensor  # (T * B,)
    discounts: Tensor  # (T * B,), the factor of the next observation's value; 0 if the episode ended for good


class TaskReplayBuffer:
    """The last transitions of every task, sampled uniformly and with replacement.

    A transition is one row of floats, so that sampling is one gather; with images, it is one row of bytes, and four of
    them make a float. The buffer has a random generator of its own, so that random numbers drawn elsewhere do not
    change what is sampled.

    Args:
        capacity: transitions kept per task.
        num_tasks: T.
        observation_size: O, the numbers in an observation.
        seed: of the generator.
        device: where sampled batches go; the stored transitions stay in main memory. Default: the CPU.
        num_actions: the number of discrete actions that a stored replay may hold. Default: any.
        observation_bytes: the bytes of images that follow the numbers of an observation. Default: none.
        action_size: A, the numbers in a continuous action. Default: actions are discrete.

    Attributes:
        nbytes: how much memory the buffer takes when it is full: 2 * (4 * O + observation_bytes) + 12 for a transition,
            and 4 more for each number in a continuous action beyond the first.

    Raises:
        ValueError: `capacity` is below 1, or the operating system gives no memory.

    Warns:
        UserWarning: the buffer takes more memory than is available when it is full.
    """

    def __init__(
        self,
        capacity: int,
        num_tasks: int,
        observation_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        num_actions: int | None = None,
        observation_bytes: int = 0,
        action_size: int | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"the replay's capacity is {capacity} transitions per task; it must be at least 1")
        self.capacity = capacity
        self.num_tasks = num_tasks
        self.observation_size = observation_size
        self.device = torch.device(device)
        self.num_actions, self.action_size = num_actions, action_size
        self.generator = torch.Generator().manual_seed(seed)
        self.position = 0
        self.full = False
        has_bytes = observation_bytes > 0
        self._width = 4 * observation_size + observation_bytes if has_bytes else observation_size  # of an observation
        self._tail = ((action_size or 1) + 2) * (4 if has_bytes else 1)  # action, reward and discount
        shape, dtype = (num_tasks, capacity, 2 * self._width + self._tail), np.uint8 if has_bytes else np.float32
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._check_memory()
        # The operating system gives memory to these zeros only when they are first written to.
        try:
            self._rows: NDArray[Any] = np.zeros(shape, dtype)
        except MemoryError:
            raise ValueError(f"the replay of {self.nbytes / 1e9:.2f} GB gets no memory; lower buffer_size") from None
        self._flat = torch.from_numpy(self._rows).view(num_tasks * capacity, -1)
        self._first_rows = torch.arange(num_tasks)[:, None] * capacity  # (T, 1)

    def _check_memory(self) -> None:
        available = psutil.virtual_memory().available
        if self.nbytes > available:
            warnings.warn(
                f"the replay of {self.num_tasks} x {self.capacity:,} transitions takes {self.nbytes / 1e9:.2f} GB when "
                f"it is full, and {available / 1e9:.2f} GB of memory are available; lower buffer_size",
                stacklevel=3,
            )

    def __len__(self) -> int:
        """Transitions stored per task."""
        return self.capacity if self.full else self.position

    def size(self) -> int:
        """Transitions stored per task, under the name that Stable-Baselines3 has for it."""
        return len(self)

    def add(
        self,
        observations: NDArray[Any],
        next_observations: NDArray[Any],
        actions: NDArray[Any],
        rewards: NDArray[np.float32],
        discounts: NDArray[np.float32],
    ) -> None:
        """Store one step of T * K environments, in task-major order: shapes (T * K, O) and (T * K,).

        Continuous actions have the shape (T * K, A).
        """
        if self._rows.dtype == np.uint8:
            tail = np.column_stack((actions, rewards, discounts)).astype(np.float32).view(np.uint8)
            step = np.column_stack((observations, next_observations, tail))
        else:
            step = np.column_stack((observations, next_observations, actions, rewards, discounts))
        step = step.reshape(self.num_tasks, -1, step.shape[-1])  # (T, K, row)
        start, count = 0, step.shape[1]
        while start < count:
            stop = min(count, start + self.capacity - self.position)
            end = self.position + stop - start
            self._rows[:, self.position : end] = step[:, start:stop]
            self.full = self.full or end == self.capacity
            self.position = end % self.capacity
            start = stop

    def sample(self, batch_size: int) -> TaskBatch:
        """Draw B = `batch_size` transitions of each task.

        Raises:
            ValueError: nothing is stored yet.
        """
        (batch,) = self.sample_several(1, batch_size)
        return batch

    def sample_several(self, count: int, batch_size: int) -> list[TaskBatch]:
        """Draw `count` batches like that of `sample`, in one gather.

        Raises:
            ValueError: nothing is stored yet.
        """
        if len(self) == 0:
            raise ValueError("the replay is empty: there is nothing to sample")
        index = torch.randint(len(self), (count, self.num_tasks, batch_size), generator=self.generator)
        rows = self._flat.index_select(0, (index + self._first_rows).flatten()).to(self.device)
        size = self._width
        tail = rows[:, 2 * size :]
        if rows.dtype == torch.uint8:
            tail = tail.contiguous().view(torch.float32)
        actions = tail[:, 0].long() if self.action_size is None else tail[:, : self.action_size]
        parts = (rows[:, :size], rows[:, size : 2 * size], actions, tail[:, -2], tail[:, -1])
        if count == 1:
            return [TaskBatch(*parts)]
        return [TaskBatch(*batch) for batch in zip(*(part.chunk(count) for part in parts), strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The contents of the buffer and its generator: everything that the next `sample` depends on."""
        return {
            "rows": self._rows[:, : len(self)],
            "position": self.position,
            "full": self.full,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: `check_state` refuses `state`. Nothing has changed then.
        """
        self.check_state(state)
        rows = state["rows"]
        self._rows[:, : rows.shape[1]] = rows
        self.position, self.full = state["position"], state["full"]
        self.generator.set_state(state["generator"])

    def check_state(self, state: Any) -> None:
        """Check that `load_state_dict` can restore `state`.

        Raises:
            ValueError: `state` is that of a buffer of another shape, or not the state of a buffer.
        """
        kinds = {"rows": np.ndarray, "position": int, "full": bool, "generator": Tensor}
        if not isinstance(state, dict) or [type(state.get(name)) for name in kinds] != list(kinds.values()):
            names = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
            raise ValueError(f"the stored replay is malformed: it must hold {names}")
        rows, position, full = state["rows"], state["position"], state["full"]
        if rows.ndim != 3 or rows.shape[::2] != self._rows.shape[::2] or rows.shape[1] > self.capacity:
            raise ValueError(f"the stored replay has the shape {rows.shape}; this one has {self._rows.shape}")
        if rows.dtype != self._rows.dtype:
            raise ValueError(f"the stored replay's rows are {rows.dtype}; they must be {self._rows.dtype}")
        if not 0 <= position < self.capacity:
            last = self.capacity - 1
            raise ValueError(f"the stored replay's position is {position}; it must be between 0 and {last}")
        if rows.shape[1] != (self.capacity if full else position):
            there = f"{rows.shape[1]} transitions per task of {self.capacity}, position {position}"
            raise ValueError(f"the stored replay does not fit together: {there}, full {full}")
        self._check_rows(rows)
        check_form("the stored replay's generator", state["generator"], self.generator.get_state())
        try:
            torch.Generator().set_state(state["generator"])
        except (RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"the stored replay's generator is in no possible state: {reason}") from None

    def _check_rows(self, rows: NDArray[Any]) -> None:
        """Check the numbers of transitions (T, N, row). A sum of finite rewards may be infinite.

        Raises:
            ValueError: an observation is not finite, an action does not exist or is not between -1 and 1, or a discount
                is not between 0 and 1.
        """
        numbers = 4 * self.observation_size if self._rows.dtype == np.uint8 else self.observation_size
        observations = (_floats(rows[..., start : start + numbers]) for start in (0, self._width))
        tail = _floats(rows[..., 2 * self._width :])
        actions, rewards, discounts = tail[..., :-2], tail[..., -2], tail[..., -1]
        most = np.inf if self.num_actions is None else self.num_actions - 1
        if not all(np.isfinite(part).all() for part in observations) or np.isnan(rewards).any():
            raise ValueError("the stored replay holds a number that is not finite")
        if self.action_size is not None:
            if not (np.abs(actions) <= 1).all():
                raise ValueError("the stored replay holds an action that is not between -1 and 1")
        elif not ((actions >= 0) & (actions <= most) & (actions == np.floor(actions))).all():
            raise ValueError(f"the stored replay holds an action that is none of the integers from 0 to {most}")
        if not ((discounts >= 0) & (discounts <= 1)).all():
            raise ValueError("the stored replay holds a discount that is not between 0 and 1")


def _floats(part: NDArray[Any]) -> NDArray[np.float32]:
    """Columns of rows as numbers."""
    return np.ascontiguousarray(part).view(np.float32) if part.dtype == np.uint8 else part
