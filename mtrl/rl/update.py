"""One update of a multi-task Q-network: targets, losses, task gradients, balance, step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtrl.balancers import Balancer
from mtrl.conflict import conflict_metrics
from mtrl.gradients import (
    Chain,
    ChainEngine,
    ParameterLayout,
    TaskGradients,
    inference,
)
from mtrl.guidance import LookaheadGuidance
from mtrl.memory import DirectionMemory
from mtrl.rl.engines import Engine, chain_of, checked, engine_of
from mtrl.rl.feature_networks import EXTRACTORS
from mtrl.rl.networks import shared_part
from mtrl.rl.nonfinite import FiniteGuard
from mtrl.rl.optimizer import FlatAdam
from mtrl.rl.policies import MultiTaskQPolicy
from mtrl.rl.replay import TaskBatch
from mtrl.rl.reward_scales import RewardScales
from mtrl.rl.settings import DQNSettings
from mtrl.rl.td_loss import TDLoss
from mtrl.states import Like, check_form


class Update:
    """Changes the weights of an agent by one step on one batch. This is what every agent knows of its update.

    Attributes:
        diagnostics: what the balancer reported about the last update, by name.
        conflict: how much the task gradients conflicted when that was last measured, by name.
    """

    def __init__(self) -> None:
        self.diagnostics: Mapping[str, Tensor] = {}
        self.conflict: dict[str, Tensor] = {}

    def __call__(self, batch: TaskBatch, measure_conflict: bool = False) -> Tensor:
        """Take the step and return the losses (T,)."""
        raise NotImplementedError

    def guide(self) -> None:
        """Give the balancer its guidance for the next updates. Called only if the balancer wants guidance."""
        raise NotImplementedError

    task_of_column: NDArray[np.int64]  # (N,), set when learning begins

    def observe(self, rewards: NDArray[np.float32], dones: NDArray[np.bool_], terminals: NDArray[np.bool_]) -> None:
        """See the rewards of one step of all columns, in task-major order; see `Step` for the arguments."""

    def forget_unfinished(self) -> None:
        """Drop what was gathered about episodes that will not be finished, because the environments were reset."""

    def check_unchanged(self) -> None:
        """Make sure that the network is as it was when this update was made.

        Raises:
            ValueError: what has changed would be ignored.
        """

    def saved_state(self) -> dict[str, Any]:
        """What a saved model holds of this update."""
        return {}

    def load_saved_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `saved_state` returned; `state` holds more than that."""

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint holds of this update besides `saved_state`."""
        return {}

    def set_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned; `state` holds more than that."""


class SharedUpdate(Update):
    """Updates a Q-network that all tasks share, by one gradient per task and a balancer that combines them.

    Args:
        policy: the online and the target network.
        balancer: combines the task gradients.
        settings: how to update.
        guard: checks that all numbers are finite.
        learning_rate: the learning rate of the first update.
        held_out: returns a batch that the network is never trained on, for the balancer's guidance. Default: none.

    Attributes:
        weights: all parameters of the online network as one vector, which shares their memory. The D parameters that
            the tasks share come first; those of their own heads, if they have any, follow.
        target_weights: the same for the target network.
        private: the parameters of the tasks' own heads, `num_private` numbers; none if all parameters are shared.
        optimizer: takes one step for all of `weights`.
        memory: turns every update towards what past ones had in common; None if the settings want none.
        reward_scales: what the rewards of each task are divided by; None if the settings want them as they are.
    """

    def __init__(
        self,
        policy: MultiTaskQPolicy,
        balancer: Balancer,
        settings: DQNSettings,
        guard: FiniteGuard,
        learning_rate: float,
        held_out: Callable[[], TaskBatch] | None = None,
    ) -> None:
        super().__init__()
        self._policy = policy
        self.network, self.target_network = policy.q_net, policy.q_net_target
        self.shared = shared_part(self.network)
        shared = set(self.shared.parameters())
        self.private = [parameter for parameter in self.network.parameters() if parameter not in shared]
        self.num_private = sum(parameter.numel() for parameter in self.private)
        self.balancer = balancer
        self.settings = settings
        self.guard = guard
        self.num_tasks = len(guard.tasks)
        self.td_loss = TDLoss(self.num_tasks, settings.td_loss, settings.huber_delta)
        self.held_out = held_out
        # With all weights in one vector and their gradient in another, the optimizer takes one fused step over both,
        # and the target network follows in one operation.
        vector = ParameterLayout(self.network.parameters()).flatten_()
        self.weights = vector.detach()
        self.target_weights = ParameterLayout(self.target_network.parameters()).flatten_().detach()
        self.optimizer = self.make_optimizer(vector, learning_rate)
        self.memory = DirectionMemory(settings.memory_angle, settings.memory_decay) if settings.memory_angle else None
        self.reward_scales = (
            RewardScales(self.num_tasks, settings.gamma) if settings.reward_scaling == "return" else None
        )
        self.values: Callable[[Tensor], Tensor] = self.network  # action values by the online network
        self.target_values: Callable[[Tensor], Tensor] = self.target_network
        extractor = getattr(self.network, "features_extractor", None)
        self._engine_is_known = extractor is None or type(extractor) in EXTRACTORS.values()
        self.chain = None if self.private else chain_of(self.network, self.num_tasks)
        if self.chain is not None:  # without autograd: the same numbers in about half the time
            self.values = self.chain.chain.forward
            self.target_values = Chain(self.target_network.layers).forward
        if policy.own_actions is not None:
            self.values = policy.own_actions.over(self.values)
            self.target_values = policy.own_actions.over(self.target_values)

    def check_unchanged(self) -> None:
        """See `Update.check_unchanged`. All weights must still lie in one vector, unfrozen and without hooks."""
        memory, number = self.weights.untyped_storage().data_ptr(), 0
        for name, weight in self._policy.q_net.named_parameters():
            number += weight.numel()
            if not weight.requires_grad:
                raise ValueError(f"q_net.{name} is frozen; this agent trains all of its network")
            if weight._backward_hooks or weight._post_accumulate_grad_hooks:
                raise ValueError(f"q_net.{name} has a hook, which this agent would not call")
            if weight.untyped_storage().data_ptr() != memory:
                raise ValueError(
                    f"q_net.{name} is not the parameter that the agent was made with; copy values into it with "
                    "q_net.load_state_dict, or give a policy class with a make_network of its own"
                )
        if number != self.weights.numel():
            raise ValueError("q_net has lost parameters since the agent was made")
        if self._policy.optimizer is not self.optimizer:
            raise ValueError("policy.optimizer has been replaced; this agent steps with an optimizer of its own")

    # ----------------------------------------------------------------- the update, from targets to the step

    def __call__(self, batch: TaskBatch, measure_conflict: bool = False) -> Tensor:
        """Take one step of the optimizer on a batch and return the losses (T,).

        Raises:
            FloatingPointError: a number is not finite; the message names it. The weights have not changed then.
        """
        direction, losses = self.direction(batch, measure_conflict)
        if self.memory is not None:
            self.turn(self.memory, direction)
        if self.settings.max_grad_norm is not None:
            self.clip(direction, self.settings.max_grad_norm)
        self.optimizer.update(direction)
        return losses

    def direction(self, batch: TaskBatch, measure_conflict: bool = False) -> tuple[Tensor, Tensor]:
        """The combined gradient that the balancer makes of the task gradients, and the losses (T,).

        The gradients of the tasks' own heads, if there are any, follow those of the shared parameters.
        """
        gradients = self.task_gradients(batch)
        losses = gradients.losses
        assert losses is not None  # the engines put them there
        with torch.no_grad():
            self.guard.check("the loss", losses.tolist())
            balance = self.balancer(gradients, losses)
            self.guard.check("the balancer's weight", balance.coefficients.tolist())
            direction = balance.update(gradients)
            self.diagnostics = balance.diagnostics
            if measure_conflict:
                self.conflict = conflict_metrics(gradients.gramian)
        return (torch.cat((direction, self.own_gradient())) if self.private else direction), losses

    def task_gradients(self, batch: TaskBatch) -> TaskGradients:
        """The gradient of each task's loss, together with the losses."""
        if self.chain is not None and not self.chain.chain.hooked:
            return self.chain_gradients(self.chain, batch)
        with torch.no_grad():
            targets = self.targets(batch)
        if not self._engine_is_known:
            parts = (self.network, self.shared, self.network.last_shared_layer)
            self.engine = checked(self.engine, lambda: self.losses(batch, targets), *parts)
            self._engine_is_known = True
        for parameter in self.private:
            parameter.grad = None
        with self.engine.record():
            losses = self.losses(batch, targets)
        return self.engine.backward(losses)

    def own_gradient(self) -> Tensor:
        """The ordinary gradient of the tasks' own heads, which the last `task_gradients` left in their `.grad`.

        Raises:
            FloatingPointError: it is not finite.
        """
        gradient = torch.cat([accumulated(parameter).flatten() for parameter in self.private])
        if not bool(gradient.isfinite().all()):
            raise FloatingPointError("the gradient of the tasks' own heads is not finite")
        return gradient

    def targets(self, batch: TaskBatch) -> Tensor:
        """Bootstrapped returns (T * B,): reward + discount * Q_target(s', a*); the discount is 0 at a terminal."""
        values = self.target_values(batch.next_observations)  # (T * B, A)
        if self.settings.double_q:
            chosen = self.values(batch.next_observations).argmax(1, keepdim=True)
            best = values.gather(1, chosen).squeeze(1)
        else:
            best = values.amax(1)
        rewards = batch.rewards if self.reward_scales is None else self.reward_scales.scale(batch.rewards)
        targets: Tensor = rewards + batch.discounts * best
        return targets

    def losses(self, batch: TaskBatch, targets: Tensor) -> Tensor:
        """Mean temporal-difference loss of each task, (T,)."""
        return self.td_loss(self.network(batch.observations), batch.actions, targets)

    # ----------------------------------------------------------------- the parts

    def make_optimizer(self, vector: nn.Parameter, learning_rate: float) -> FlatAdam:
        """The optimizer of the weights, which are the vector (D,)."""
        options = self._policy.optimizer_kwargs
        return FlatAdam(vector, learning_rate, decoupled=not options.get("weight_decay"), **options)

    @cached_property
    def engine(self) -> Engine:
        """Computes the task gradients of any network by autograd."""
        return engine_of(self.shared, self.num_tasks, self.network.last_shared_layer)

    @inference
    def chain_gradients(self, chain: ChainEngine, batch: TaskBatch) -> TaskGradients:
        """The same as `task_gradients`, without autograd, by an engine of the online network's layers."""
        targets = self.targets(batch)
        values = chain.forward(batch.observations)
        losses, slope = self.td_loss.losses_and_slope(values, batch.actions, targets)
        gradients = chain.backward(slope, losses)
        if self.balancer.looks_at == "gramian":
            _ = gradients.jacobian  # computed here, because entering inference mode once more would cost time
        return gradients

    def turn(self, memory: DirectionMemory, direction: Tensor) -> None:
        """Turn the shared part of `direction` in place towards what past directions had in common."""
        memory.turn_(direction[: len(direction) - self.num_private])

    def clip(self, direction: Tensor, max_norm: float) -> None:
        """Scale `direction` (D,) down to `max_norm`, in place, as `torch.nn.utils.clip_grad_norm_` does."""
        scale = max_norm / (torch.linalg.vector_norm(direction).item() + 1e-6)
        if scale < 1:
            direction.mul_(scale)

    def update_target(self, tau: float) -> None:
        """Move the target network the share `tau` of the way to the online network."""
        self.target_weights.lerp_(self.weights, tau)

    def observe(self, rewards: NDArray[np.float32], dones: NDArray[np.bool_], terminals: NDArray[np.bool_]) -> None:
        """Add the step's rewards to the reward scales."""
        if self.reward_scales is not None:
            self.reward_scales.add(rewards, dones, self.task_of_column)

    def forget_unfinished(self) -> None:
        """Drop the returns of episodes that will not be finished."""
        if self.reward_scales is not None:
            self.reward_scales.forget_unfinished()

    def saved_state(self) -> dict[str, Any]:
        """The memory of past updates, and the reward scales."""
        memory = {} if self.memory is None else {"memory": self.memory.state_dict()}
        scales = {} if self.reward_scales is None else {"reward_scales": self.reward_scales.state_dict()}
        return memory | scales

    def load_saved_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `saved_state` returned. A model that was saved without one of them begins it anew.

        Raises:
            ValueError: the memory is of another number of parameters, or the reward scales are of other tasks.
        """
        if self.reward_scales is not None and "reward_scales" in state:
            self.reward_scales.load_state_dict(state["reward_scales"])
        if self.memory is not None:
            self.memory.reset()
            if "memory" in state:
                self.memory.load_state_dict(state["memory"])
                self.memory.check(self.weights.numel() - self.num_private)

    def training_state(self) -> dict[str, Any]:
        """The discounted returns of unfinished episodes, (T * K,), if rewards are scaled."""
        return {} if self.reward_scales is None else {"unfinished_returns": self.reward_scales.returns}

    def set_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore the discounted returns of unfinished episodes.

        Raises:
            ValueError: they are not one finite number per column; or there are some, and no step has been taken.
        """
        if self.reward_scales is not None:
            returns = state["unfinished_returns"]
            columns = len(state["last_observations"]) if state["progress"]["num_timesteps"] else 0
            check_form("unfinished_returns", returns, Like(np.zeros(columns)))
            self.reward_scales.returns = returns.copy()

    # ----------------------------------------------------------------- guidance of the balancer

    def guide(self) -> None:
        """Give the balancer its guidance: the gradient of the held-out loss one step of gradient descent ahead.

        The step has the present learning rate. At a learning rate of 0, with which a schedule may begin and does end,
        the balancer keeps the guidance that it was given before.
        """
        rate = self.optimizer.param_groups[0]["lr"]
        if rate > 0:
            balancer: Any = self.balancer  # one that wants guidance has this method
            balancer.set_guidance(self.guidance, eta=rate)

    @cached_property
    def guidance(self) -> Callable[[Tensor], Tensor]:
        """Takes a step (D,) and returns the gradient (D,) of the held-out loss at the weights minus that step."""
        if self.chain is not None:
            return self.chain_guidance
        return LookaheadGuidance(self.held_out_loss, self.shared.parameters())

    def held_out_loss(self) -> Tensor:
        """Temporal-difference loss, summed over the tasks, on transitions that are held out from training."""
        assert self.held_out is not None
        batch = self.held_out()
        with torch.no_grad():
            targets = self.targets(batch)
        return self.losses(batch, targets).sum()

    def chain_guidance(self, step: Tensor) -> Tensor:
        """The same as `LookaheadGuidance` of `held_out_loss`, without autograd."""
        assert self.held_out is not None
        batch = self.held_out()
        here = self.weights.clone()
        self.weights.sub_(step)
        try:
            return self.chain_gradients(self._guidance_chain, batch).jacobian[0]
        finally:
            self.weights.copy_(here)

    @cached_property
    def _guidance_chain(self) -> ChainEngine:
        return ChainEngine(self.network.layers, 1, group=None)


def accumulated(parameter: nn.Parameter) -> Tensor:
    """The `.grad` of a parameter; zeros if no loss has reached it."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
