"""Independent DQN: one network per task on the same data and updates, the baseline without sharing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from mtrl.gradients import NonFiniteGradientError, ParameterLayout
from mtrl.rl.dqn import MultiTaskDQN
from mtrl.rl.networks import IndependentQNetworks
from mtrl.rl.policies import MultiTaskQPolicy
from mtrl.rl.replay import TaskBatch


class IndependentQPolicy(MultiTaskQPolicy):
    """Acts greedily on each task's own network. policy_kwargs are `net_arch` and `layer_norm`, as elsewhere."""

    def make_network(  # type: ignore[override] # no embedding: nothing is shared
        self,
        observation_size: int,
        num_actions: int,
        num_tasks: int,
        net_arch: Sequence[int] = (256, 128),
        layer_norm: bool = True,
    ) -> IndependentQNetworks:
        """One network per task."""
        return IndependentQNetworks(observation_size, num_actions, num_tasks, net_arch, layer_norm)


class IndependentDQN(MultiTaskDQN):
    """`MultiTaskDQN` with one network per task, trained side by side as stacked weights.

    Data, batches and number of updates are those of the shared agents. The tasks share no parameter and Adam works on
    each parameter alone, so this is as many separate agents; there is nothing to balance. Observations must be
    task-aware: the one-hot says which network acts.

    Args:
        policy: `"MlpPolicy"`.
        env: as for `MultiTaskDQN`, task-aware.
        **kwargs: as for `MultiTaskDQN`; the balancer can only be `"equal"`.

    Raises:
        ValueError: observations have no one-hot, or a balancer is asked for.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": IndependentQPolicy}

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self._balancer_spec != "equal":
            raise ValueError("independent networks share nothing that a balancer could balance; leave it 'equal'")

    def _make_engine(self) -> None:
        self._parameters = list(self.policy.q_net.parameters())

    def _balanced_gradient(self, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            targets = self._targets(batch)
        losses = self._losses(batch, targets)
        self._guard.check("the loss", losses.tolist())
        gradients: Sequence[Any] = torch.autograd.grad(losses.sum(), self._parameters)  # each (T, ...)
        gradient = torch.cat([stack.flatten() for stack in gradients])
        if not math.isfinite(gradient.sum().item()):
            for task in range(len(losses)):
                if not all(bool(stack[task].isfinite().all()) for stack in gradients):
                    raise NonFiniteGradientError(f"the gradient of task {task} is not finite", task)
        return gradient, losses.detach()

    def _clip(self, gradient: Tensor, max_norm: float) -> None:
        """Each network by its own norm: by a common one, a task's network would depend on the others."""
        stacks = ParameterLayout(self._parameters).split(gradient)  # each (T, ...)
        squares = torch.stack([stack.flatten(1).square().sum(1) for stack in stacks]).sum(0)
        scale = (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1)  # as `torch.nn.utils.clip_grad_norm_` does
        for stack in stacks:
            stack.mul_(scale.view(-1, *[1] * (stack.ndim - 1)))
