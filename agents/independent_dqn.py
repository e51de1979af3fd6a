"""Independent DQN: one network per task on the same data and updates, the baseline without sharing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from mtrl.gradients import NonFiniteGradientError, ParameterLayout
from mtrl.limits import check_parameters, perceptron_parameters
from mtrl.memory import DirectionMemory
from mtrl.rl.balanced import BalancedNetwork
from mtrl.rl.dqn import MultiTaskDQN
from mtrl.rl.networks import SharedQNetwork, check_widths
from mtrl.rl.policies import MultiTaskQPolicy
from mtrl.rl.replay import TaskBatch
from mtrl.rl.update import SharedUpdate


class IndependentQNetworks(nn.Module):
    """One blind Q-network per task, as stacked weights; the one-hot in the observation chooses the network.

    The network of each task is a `SharedQNetwork` without embedding, with the same initial weights as one. With the
    defaults there are 107,148 parameters for three tasks.

    Args:
        observation_size: O, of which the last `num_tasks` are the task's one-hot.
        num_actions: A.
        num_tasks: T, at least 1.
        hidden_dims: widths of each network's hidden layers. Default (256, 128).
        layer_norm: see `SharedQNetwork`. Default True.

    Raises:
        ValueError: `num_tasks` is 0, so that there is no one-hot; or the sizes are out of the limits of
            `SharedQNetwork`, where the limit of the parameters holds for all networks together.
    """

    def __init__(
        self,
        observation_size: int,
        num_actions: int,
        num_tasks: int,
        hidden_dims: Sequence[int] = (256, 128),
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError("independent networks choose by the task's one-hot: use task-aware observations")
        self.num_tasks = num_tasks
        self.layer_norm = layer_norm
        state = observation_size - num_tasks
        check_widths(hidden_dims)
        check_parameters(num_tasks * perceptron_parameters(state, *hidden_dims, num_actions))
        networks = [SharedQNetwork(state, num_actions, hidden_dims=hidden_dims) for _ in range(num_tasks)]
        linear = [[layer for layer in network.layers if isinstance(layer, nn.Linear)] for network in networks]
        stacked = list(zip(*linear, strict=True))  # per layer, one of each task
        self.weights = nn.ParameterList(torch.stack([one.weight.detach() for one in layer]) for layer in stacked)
        self.biases = nn.ParameterList(torch.stack([one.bias.detach() for one in layer]) for layer in stacked)

    def layer_of_tasks(self) -> tuple[Tensor, Tensor]:
        """The weights (T, A, width) and biases (T, A) of the networks' last layers."""
        return self.weights[-1], self.biases[-1]

    def forward(self, observations: Tensor) -> Tensor:
        """Action values (N, A) for observations (N, O)."""
        state, one_hot = observations[:, : -self.num_tasks], observations[:, -self.num_tasks :]
        task = one_hot.argmax(1)  # (N,)
        rows = torch.arange(len(task), device=task.device)
        each, rest = divmod(len(task), self.num_tasks)
        if not rest and torch.equal(task, rows // max(each, 1)):  # task-major: every network sees only its own rows
            return self._run(state.view(self.num_tasks, each, state.shape[1])).flatten(0, 1)
        values = self._run(state.expand(self.num_tasks, *state.shape))  # (T, N, A): all networks on all rows
        return values[task, rows]

    def _run(self, x: Tensor) -> Tensor:
        """Action values (T, B, A) of every network for its own inputs (T, B, S)."""
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
            if index < last:
                x = (F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x).relu()
        return x


class IndependentQPolicy(MultiTaskQPolicy):
    """Acts greedily on each task's own network. policy_kwargs are `net_arch` and `layer_norm`."""

    takes_vectors_only = True

    def make_network(  # type: ignore[override] # no embedding: nothing is shared
        self,
        observation_size: int,
        num_actions: int,
        num_tasks: int,
        net_arch: Sequence[int] = (256, 128),
        layer_norm: bool = True,
    ) -> IndependentQNetworks:
        """Make one network per task."""
        return IndependentQNetworks(observation_size, num_actions, num_tasks, net_arch, layer_norm)


class IndependentNetworks(BalancedNetwork):
    """The weights of all networks as one vector; the memory and the largest norm are each network's own."""

    def turn(self, memory: DirectionMemory, direction: Tensor) -> None:
        """Turn the gradient of each network towards what its own past gradients had in common."""
        stacks = ParameterLayout(self.network.parameters()).split(direction)  # each (T, ...)
        rows = memory.turn_(torch.cat([stack.flatten(1) for stack in stacks], 1))
        for stack, part in zip(stacks, torch.split(rows, [stack[0].numel() for stack in stacks], 1), strict=True):
            stack.copy_(part.view_as(stack))

    def clip(self, direction: Tensor, max_norm: float) -> None:
        """Scale the gradient of each network by its own norm; by a common norm, a network would depend on the others.

        The scale is that of `torch.nn.utils.clip_grad_norm_`.
        """
        stacks = ParameterLayout(self.network.parameters()).split(direction)  # each (T, ...)
        squares = torch.stack([stack.flatten(1).square().sum(1) for stack in stacks]).sum(0)
        scale = (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1)
        for stack in stacks:
            stack.mul_(scale.view(-1, *[1] * (stack.ndim - 1)))


class IndependentUpdate(SharedUpdate):
    """Updates all networks side by side, each by the gradient of its own task's loss."""

    online_type = IndependentNetworks

    def direction(self, batch: TaskBatch, measure_conflict: bool = False) -> tuple[Tensor, Tensor]:
        """The gradients of all networks, end to end (D,), and the losses (T,). There is nothing to balance."""
        with torch.no_grad():
            targets = self.targets(batch)
            self.adapt(targets)
        losses = self.losses(batch, targets)
        self.guard.check("the loss", losses.tolist())
        parameters = list(self.network.parameters())
        gradients: Sequence[Any] = torch.autograd.grad(losses.sum(), parameters)  # each (T, ...)
        direction = torch.cat([stack.flatten() for stack in gradients])
        if not math.isfinite(direction.sum().item()):
            for task in range(len(losses)):
                if not all(bool(stack[task].isfinite().all()) for stack in gradients):
                    raise NonFiniteGradientError(f"the gradient of task {task} is not finite", task)
        return direction, losses.detach()


class IndependentDQN(MultiTaskDQN):
    """`MultiTaskDQN` with one network per task, trained side by side as stacked weights.

    Data, batches and number of updates are those of the shared agents. The tasks share no parameter, and Adam works on
    each parameter alone, so this amounts to as many separate agents, with nothing to balance. Observations must be
    task-aware: the one-hot says which network acts.

    The arguments are those of `MultiTaskDQN`, except that the balancer can only be `"equal"`.

    Raises:
        ValueError: observations have no one-hot, or another balancer is asked for.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": IndependentQPolicy}
    update_type: ClassVar[type[SharedUpdate]] = IndependentUpdate

    def _setup_model(self) -> None:
        if self.balancer_name != "equal":
            raise ValueError("independent networks share nothing that a balancer could balance; leave it 'equal'")
        super()._setup_model()
