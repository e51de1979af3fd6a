"""The gradients of a soft actor-critic without autograd: the same numbers as `ActorCriticUpdate`'s, in less time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtrl.gradients import Chain, ChainEngine, TaskGradients, UnsupportedLayerError, inference
from mtrl.rl.actor_critic import LOG_STD, MultiTaskSACPolicy, log_densities
from mtrl.rl.networks import SharedQNetwork
from mtrl.rl.replay import TaskBatch
from mtrl.rl.value_scales import ValueScales


class ActorCriticChains:
    """The networks of a policy as chains of layers; see `Chain`.

    Args:
        policy: actor, critics and target critics, on vectors and without own heads.
        num_tasks: T.
        scales: the units of the values; None if they are as they are.

    Raises:
        UnsupportedLayerError: a network is no chain of layers that can run without autograd.
    """

    def __init__(self, policy: MultiTaskSACPolicy, num_tasks: int, scales: ValueScales | None = None) -> None:
        actor, critic, target = (_layers_of(part) for part in (policy.actor, policy.critic, policy.critic_target))
        self.num_tasks, self.num_actions, self.scales = num_tasks, policy.num_actions, scales
        self.actor = ChainEngine(actor[0], num_tasks, policy.actor.last_shared_layer)
        self.only_own = policy.actor.only_own
        self.critics = ChainEngine(critic, num_tasks, policy.critic.last_shared_layer)
        self.target_critics = [Chain(layers) for layers in target]

    @property
    def hooked(self) -> bool:
        """Whether a layer has a hook, which the chains would not call."""
        return self.actor.chain.hooked or self.critics.chain.hooked

    @inference
    def target_values(self, rows: Tensor, actions: Tensor) -> Tensor:
        """The lowest value (N,) of actions (N, A) by the target critics."""
        inputs = torch.cat((actions, rows), 1)
        values = torch.cat([chain.forward(inputs) for chain in self.target_critics], 1)
        if self.scales is None:
            return values.amin(1)
        return self.scales.raw(lowest(values.t(), self.scales, of_target=True))

    @inference
    def sample(self, rows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (N, A) from -1 to 1, and the logarithm of their density (N,); see `Actor.sample`."""
        mean, log_std = self.actor.forward(rows).chunk(2, 1)
        log_std = log_std.clamp(*LOG_STD)
        actions = self.only_own(rows, torch.tanh(torch.addcmul(mean, log_std.exp(), noise)))
        return actions, self.only_own(rows, log_densities(actions, log_std, noise)).sum(1)

    @inference
    def critic_gradients(self, batch: TaskBatch, targets: Tensor) -> TaskGradients:
        """The gradients of `ActorCriticUpdate.critic_losses`."""
        values = self.critics.forward(torch.cat((batch.actions, batch.observations), 1))  # (C, T * B, 1)
        outputs = values
        if self.scales is not None:
            values, targets = self.scales.normalised(outputs), self.scales.normalised_targets(targets)
        errors = values - targets[:, None]
        losses = 0.5 * errors.square().sum(0).view(self.num_tasks, -1).mean(1)
        slope = errors.div_(len(targets) // self.num_tasks)
        if self.scales is not None:
            self.scales.keep_gradient(outputs, slope)
            slope = self.scales.slope_of_outputs(slope)
        return self.critics.backward(slope, losses)

    @inference
    def actor_gradients(self, batch: TaskBatch, temperatures: Tensor, noise: Tensor) -> tuple[TaskGradients, Tensor]:
        """The gradients of `ActorCriticUpdate.losses_of_actor`, and the logarithms of the actions' densities (T * B,).

        Args:
            batch: the batch.
            temperatures: of each task, (T,).
            noise: standard normal numbers (T * B, A).
        """
        mean, unlimited = self.actor.forward(batch.observations).chunk(2, 1)
        log_std = unlimited.clamp(*LOG_STD)
        std = log_std.exp()
        actions = self.only_own(batch.observations, torch.tanh(torch.addcmul(mean, std, noise)))
        values = self.critics.chain.forward(torch.cat((actions, batch.observations), 1)).squeeze(2)  # (C, T * B)
        means = None
        if self.scales is not None:
            values = self.scales.normalised(values)
            temperatures, means = self.scales.of_actor(temperatures)
        least, critic = values.min(0)
        chosen = torch.zeros_like(values).scatter_(0, critic[None], 1.0)
        if self.scales is not None:
            chosen = self.scales.slope_of_outputs(chosen)
        temperatures = temperatures.repeat_interleave(len(noise) // self.num_tasks)
        rise = self.critics.chain.input_gradient(chosen[:, :, None])[:, : self.num_actions]  # of the value, (T * B, A)
        by_row = temperatures[:, None]
        room = 1 - actions.square()  # the derivative of the hyperbolic tangent
        # d loss / d (mean + std * noise): by the density's correction for squashing, and by the value
        slope = self.only_own(batch.observations, room * (by_row * 2 * actions / (room + 1e-6) - rise))
        is_free = (unlimited >= LOG_STD[0]) & (unlimited <= LOG_STD[1])
        of_log_std = self.only_own(batch.observations, (slope * std * noise - by_row) * is_free)
        density = self.only_own(batch.observations, log_densities(actions, log_std, noise)).sum(1)
        losses = (temperatures * density - least).view(self.num_tasks, -1).mean(1)
        if means is not None:
            losses -= means
        of_output = torch.cat((slope, of_log_std), 1).div_(len(noise) // self.num_tasks)
        return self.actor.backward(of_output, losses), density


def lowest(outputs: Tensor, scales: ValueScales | None, of_target: bool = False) -> Tensor:
    """The lowest of the values of each row, (T * B,), of the outputs of C critics, (C, T * B), in the scales' units."""
    return (outputs if scales is None else scales.normalised(outputs, of_target)).amin(0)


def chains_of(
    policy: MultiTaskSACPolicy, num_tasks: int, scales: ValueScales | None = None
) -> ActorCriticChains | None:
    """The chains of a policy; None if its networks are no chains of layers."""
    try:
        return ActorCriticChains(policy, num_tasks, scales)
    except UnsupportedLayerError:  # an activation other than ReLU, heads of the tasks' own, or a features extractor
        return None


def _layers_of(part: Any) -> list[nn.Sequential]:
    networks = list(part.networks)
    is_plain = isinstance(part.features, nn.Identity)
    if not (is_plain and all(type(one) is SharedQNetwork and one.heads is None for one in networks)):
        raise UnsupportedLayerError("only networks of layers that all tasks share, on vectors, are chains")
    return [network.layers for network in networks]
