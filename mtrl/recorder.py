"""A record of any training loop: the losses, the conflict of the task gradients, and the balancer's diagnostics.

    with Recorder("metrics.jsonl", balancer, tasks=["depth", "normals"], every=10):
        for batch in batches:
            optimizer.zero_grad()
            balancer.backward(losses(batch))
            optimizer.step()

The file has the form of a training run's `metrics.jsonl`: each line is a JSON object of numbers that starts with
`env_step`.
`python -m experiments.plot_recording metrics.jsonl` draws the recording.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

from mtrl.balancers.base import Balance, Balancer
from mtrl.conflict import conflict_metrics
from mtrl.files import open_regular, parse_numbers
from mtrl.gradients import TaskGradients
from mtrl.limits import check_number

STEP = "env_step"
LONGEST_LINE = 2**22
"""The most bytes of a line that is read as one."""

SYMMETRIC = ("cosine", "magnitude_similarity")
"""The diagnostics (T, T) that have the same number for the pair (a, b) as for (b, a), which is recorded once."""


class RecordingError(ValueError):
    """A file is not a recording; the message is one line that names the file and the line."""


def named(diagnostics: Mapping[str, Tensor], tasks: Sequence[str]) -> Iterator[tuple[str, float]]:
    """The numbers of a balancer's diagnostics, under the names by which they are recorded.

    Args:
        diagnostics: see `Balance`.
        tasks: the names of the T tasks.

    Yields:
        `balancer/<name>` for a tensor (), `balancer/<task>/<name>` for each task of a tensor (T,), and
        `balancer/<name>/<task>_<other>` for each pair of different tasks of a tensor (T, T). A pair of a diagnostic in
        `SYMMETRIC` comes in one order only.
    """
    for name, tensor in diagnostics.items():
        values: Any = tensor.tolist()
        if tensor.ndim == 0:
            yield f"balancer/{name}", values
        elif tensor.ndim == 1:
            yield from ((f"balancer/{task}/{name}", value) for task, value in zip(tasks, values, strict=True))
        else:
            for i, a in enumerate(tasks):
                for j, b in enumerate(tasks):
                    if i < j or (i > j and name not in SYMMETRIC):
                        yield f"balancer/{name}/{a}_{b}", values[i][j]


class Recorder:
    """Writes a line to a file at the first call of a balancer and at every `every`-th, until it is closed.

    The recorder listens to the balancer, so that the training loop need not change: `balancer.backward`,
    `balancer.combine` and calls of the balancer itself all count. A line holds the losses as they were given
    (`train/<task>/loss`), the balancer's diagnostics (`balancer/...`, see `named`) and the metrics of `mtrl.conflict`.
    Numbers that are not finite and numbers of tasks that are missing from the batch are left out. At other calls the
    recorder only counts. In a data-parallel run, record on one process.

    If the file exists, the recording continues it. A last line that was only half written is dropped.

    Args:
        path: the file. Missing parent folders are created.
        balancer: the balancer to listen to.
        tasks: the names of the T tasks. Default: the names of a dict of losses, and otherwise the tasks' numbers.
        every: the number of calls from one line to the next. Default 10.
        step: the number of calls made so far. Later lines in the file are dropped, because the loop is going to write
            them again; 0 starts the file afresh. Default: the number in the file's last line.

    Attributes:
        step: the number of calls so far. It is the `env_step` of a line, since a loop without environments has no
            environment steps.

    Raises:
        ValueError: `every` is below 1, `step` is negative, or the names are not distinct, hold a slash, or are not T.
        RecordingError: the file exists and is not a recording. It is left unchanged.
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        balancer: Balancer,
        tasks: Sequence[str] | None = None,
        *,
        every: int = 10,
        step: int | None = None,
    ) -> None:
        self.every: int = check_number("every", every, least=1, whole=True)
        if step is not None:
            check_number("step", step, least=0, whole=True)
        self._tasks = None if tasks is None else _checked(tasks)
        if balancer.num_tasks is not None:
            self._names(balancer.num_tasks)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_regular(path, "a+b", follow_link=True)
        try:
            self._file.seek(0)
            length, last = _end(self._file, path, step)
            self._file.truncate(length)
        except BaseException:
            self._file.close()
            raise
        self.step = last if step is None else step
        self._hook = balancer.register_forward_hook(self._count, with_kwargs=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and close the file."""
        self._hook.remove()
        self._file.close()

    def record(self, values: Mapping[str, float]) -> None:
        """Write a line of your own, such as `{"eval/depth/error": 0.1}`, at the present step, and flush the file."""
        self._write(values.items())

    def _count(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Balance) -> None:
        """Count a call of the balancer. PyTorch calls this with the arguments and the answer of the balancer."""
        self.step += 1
        if self.step > 1 and self.step % self.every:
            return
        arguments = dict(zip(("gradients", "losses"), args, strict=False)) | kwargs
        gradients: TaskGradients = arguments["gradients"]
        given = arguments.get("losses")
        losses = gradients.losses if given is None else given
        assert losses is not None  # without losses the balancer would not have answered
        mask = gradients.mask
        tasks = self._names(gradients.num_tasks if mask is None else len(mask), gradients.names)
        there = tasks if mask is None else tuple(task for task, is_there in zip(tasks, mask, strict=True) if is_there)
        with torch.no_grad():
            values = {f"train/{task}/loss": loss for task, loss in zip(there, losses.tolist(), strict=True)}
            values |= named(answer.diagnostics, tasks)
            values |= named(conflict_metrics(gradients.gramian), there)
        self._write(values.items())

    def _names(self, num_tasks: int, of_losses: Sequence[str] | None = None) -> tuple[str, ...]:
        if self._tasks is None:
            return tuple(map(str, range(num_tasks))) if of_losses is None else _checked(of_losses)
        if len(self._tasks) != num_tasks:
            raise ValueError(f"got names for {len(self._tasks)} tasks, {', '.join(self._tasks)}, and {num_tasks} tasks")
        return self._tasks

    def _write(self, values: Iterable[tuple[str, float]]) -> None:
        line = {STEP: self.step} | {name: value for name, value in values if math.isfinite(value)}
        self._file.write(f"{json.dumps(line)}\n".encode())
        self._file.flush()


def _checked(tasks: Sequence[str]) -> tuple[str, ...]:
    """The names of tasks, which become parts of the names of numbers."""
    if len(set(tasks)) < len(tasks) or not all(task and "/" not in task for task in tasks):
        raise ValueError(f"tasks must be distinct names without '/', not {', '.join(tasks)}")
    return tuple(tasks)


def read_recording(path: str | Path) -> list[dict[str, float]]:
    """Read the lines of a recording or of a training run's `metrics.jsonl`, without a half-written last line.

    Raises:
        RecordingError: the file is neither.
        OSError: the file cannot be read.
    """
    with open_regular(path, follow_link=True) as file:
        return [line for line, _ in _lines(file, Path(path))]


def _end(file: BinaryIO, path: Path, step: int | None) -> tuple[int, int]:
    """The number of bytes of a recording that belong to lines up to `step`, and the step of the last of these lines."""
    length = last = 0
    for line, size in _lines(file, path):
        if step is not None and line[STEP] > step:
            break
        length += size
        last = int(line[STEP])
    return length, last


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[dict[str, float], int]]:
    """Yield each line and its length in bytes."""
    for number, text in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
        if not text.endswith(b"\n") and (number > 1 or b'{"env_step": '.startswith(text[:13])):
            return
        try:
            line = parse_numbers(text)
        except ValueError:
            line = {}
        if not isinstance(line.get(STEP), int):
            raise RecordingError(f"'{path}' is no recording: line {number} is not an object of numbers with {STEP}")
        yield line, len(text)
