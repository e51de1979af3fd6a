"""The problem of `benchmarks.scaling`: a perceptron, a batch, and the updates that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from benchmarks.common import parameters_of, torchjd_pcgrad
from mtrl.balancers import make_balancer
from mtrl.gradients import ChainEngine, TaskMajorEngine

INPUTS, OUTPUTS = 16, 4
PLAIN, CHAIN, LOW_MEMORY, TORCHJD = "plain", "pcgrad, chain", "pcgrad, low memory", "TorchJD PCGrad"
BALANCERS = ("equal", "pcgrad", "gradnorm", "rgb")


@dataclass(frozen=True)
class Shape:
    """The sizes of one table's problem."""

    tasks: int
    width: int
    batch_size: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """The widths of the layers, from the input to the output."""
        return (INPUTS, self.width, self.width // 2, OUTPUTS)

    @property
    def parameters(self) -> int:
        """The number of parameters D."""
        return parameters_of(self.sizes)

    @property
    def rows(self) -> int:
        """The rows of the batch, over all tasks."""
        return self.tasks * self.batch_size

    def gibibytes(self, case: str) -> float:
        """An estimate of the largest memory of a process: parameters, gradients, rows of the Jacobian, activations."""
        # Low-memory mode holds T rows of the largest layer, which here has nearly all of the D parameters.
        rows_held = {PLAIN: 0, TORCHJD: 2}.get(case, 1) * self.tasks
        activations = 4 * self.rows * sum(self.sizes)  # values and gradients, before and after the ReLU
        return 4 * ((rows_held + 3) * self.parameters + activations) / 2**30


class Problem:
    """A network and one batch, with several ways to compute the balanced gradient of its losses."""

    def __init__(self, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        first, second, third, last = shape.sizes
        self.tasks = shape.tasks
        self.network = nn.Sequential(
            nn.Linear(first, second), nn.ReLU(), nn.Linear(second, third), nn.ReLU(), nn.Linear(third, last)
        )
        self.x = torch.randn(shape.rows, INPUTS, generator=generator)
        self.targets = torch.randn(shape.rows, OUTPUTS, generator=generator)
        self._engine: TaskMajorEngine | None = None

    def losses(self) -> Tensor:
        """The losses of all tasks (T,), by one forward pass."""
        per_row = F.smooth_l1_loss(self.network(self.x), self.targets, reduction="none").view(self.tasks, -1)
        return per_row.mean(1)

    def losses_and_slope(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (T,), and their derivative with respect to the network's output `values` (T * B, 4)."""
        error = values - self.targets
        slope = error.clamp(-1, 1)
        losses = (slope * (error - 0.5 * slope)).view(self.tasks, -1)
        return losses.mean(1), slope / losses.shape[1]

    def losses_one_by_one(self) -> list[Tensor]:
        """The losses, by one forward pass per task, so that a task's backward pass needs only the task's own rows."""
        batches = zip(self.x.chunk(self.tasks), self.targets.chunk(self.tasks), strict=True)
        return [F.smooth_l1_loss(self.network(x), targets) for x, targets in batches]

    def update(self, case: str) -> Callable[[], None]:
        """The update of a case. It fills the gradient of every parameter."""
        ways = {PLAIN: self._plain, TORCHJD: self._torchjd, CHAIN: self._chain, LOW_MEMORY: self._low_memory}
        return ways[case]() if case in ways else self._task_major(case)

    def _plain(self) -> Callable[[], None]:
        def update() -> None:
            self.network.zero_grad()
            self.losses().sum().backward()  # type: ignore[no-untyped-call]

        return update

    def _torchjd(self) -> Callable[[], None]:
        fill_gradients = torchjd_pcgrad(list(self.network.parameters()), optimize_gramian_computation=True)

        def update() -> None:
            self.network.zero_grad()
            fill_gradients(self.losses())

        return update

    def _chain(self) -> Callable[[], None]:
        balancer, chain = make_balancer("pcgrad", self.tasks), ChainEngine(self.network, self.tasks)

        @torch.no_grad()
        def update() -> None:
            self.network.zero_grad()
            losses, slope = self.losses_and_slope(chain.forward(self.x))
            gradients = chain.backward(slope, losses)
            chain.layout.accumulate_grad(balancer(gradients).update(gradients))

        return update

    def _low_memory(self) -> Callable[[], None]:
        balancer, parameters = make_balancer("pcgrad", self.tasks), list(self.network.parameters())

        def update() -> None:
            self.network.zero_grad()
            balancer.backward(self.losses_one_by_one(), parameters, low_memory=True)

        return update

    def _task_major(self, name: str) -> Callable[[], None]:
        balancer = make_balancer(name, self.tasks)
        if self._engine is None:
            self._engine = TaskMajorEngine(self.network, self.tasks, self.network[2])
        engine = self._engine

        def update() -> None:
            self.network.zero_grad()
            with engine.record():
                losses = self.losses()
            gradients = engine.backward(losses)
            with torch.no_grad():
                engine.layout.accumulate_grad(balancer(gradients).update(gradients))

        return update
