"""One update of a multi-task Q-network: targets, losses, task gradients, balance, step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtrl.balancers import Balancer
from mtrl.gradients import Chain, ChainEngine, ParameterLayout, TaskGradients, inference
from mtrl.guidance import LookaheadGuidance, combined
from mtrl.rl.balanced import BalancedNetwork
from mtrl.rl.engines import chain_of
from mtrl.rl.networks import in_order
from mtrl.rl.nonfinite import FiniteGuard
from mtrl.rl.optimizer import FlatAdam
from mtrl.rl.policies import MultiTaskQPolicy
from mtrl.rl.replay import TaskBatch
from mtrl.rl.reward_scales import RewardScales
from mtrl.rl.settings import DQNSettings, ReplaySettings
from mtrl.rl.td_loss import TDLoss
from mtrl.rl.value_scales import ValueScales
from mtrl.states import Like, check_form


class Update:
    """Changes the weights of an agent by one step on one batch. This is what every agent knows of its update.

    Args:
        settings: the settings of the agent.
        guard: checks that all numbers are finite.

    Attributes:
        num_tasks: T.
        diagnostics: what the balancer reported about the last update, by name.
        conflict: how much the task gradients conflicted when that was last measured, by name.
        reward_scales: what the rewards of each task are divided by; None if the settings want them as they are.
        value_scales: the units in which the values of each task are learned; None if the settings want them as they
            are. Subclasses make it.
    """

    task_of_column: NDArray[np.int64]  # (N,), set when learning begins

    def __init__(self, settings: ReplaySettings, guard: FiniteGuard) -> None:
        self.guard = guard
        self.num_tasks = len(guard.tasks)
        self.diagnostics: Mapping[str, Tensor] = {}
        self.conflict: dict[str, Tensor] = {}
        self.reward_scales = (
            RewardScales(self.num_tasks, settings.gamma) if settings.reward_scaling == "return" else None
        )
        self.value_scales: ValueScales | None = None

    def __call__(self, batch: TaskBatch, measure_conflict: bool = False) -> Tensor:
        """Take the step and return the losses (T,)."""
        raise NotImplementedError

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that follow the schedule of the learning rate."""
        raise NotImplementedError

    def guide(self) -> None:
        """Give the balancer its guidance for the next updates. Called only if a balancer wants guidance."""
        raise NotImplementedError

    def update_target(self, tau: float) -> None:
        """Move the target network the share `tau` of the way to the online network."""
        raise NotImplementedError

    def rewards(self, batch: TaskBatch) -> Tensor:
        """The rewards of a batch (T * B,), divided as the settings say."""
        return batch.rewards if self.reward_scales is None else self.reward_scales.scale(batch.rewards)

    def adapt(self, targets: Tensor) -> None:
        """Let the units of the values follow the targets of a batch (T * B,), if the settings say so."""
        if self.value_scales is not None:
            self.value_scales.adapt(targets)

    def scales(self) -> dict[str, list[float]]:
        """The numbers by which rewards and values of each task are scaled, by their names in the logs."""
        found = {} if self.reward_scales is None else {"reward_scale": self.reward_scales.divisors.tolist()}
        if self.value_scales is not None:
            found["value_scale"] = self.value_scales.deviation.tolist()
            found["value_mean"] = self.value_scales.mean.tolist()
        return found

    def observe(self, rewards: NDArray[np.float32], dones: NDArray[np.bool_], terminals: NDArray[np.bool_]) -> None:
        """See the rewards of one step of all columns, in task-major order; see `Step` for the arguments."""
        if self.reward_scales is not None:
            self.reward_scales.add(rewards, dones, self.task_of_column)

    def forget_unfinished(self) -> None:
        """Drop what was gathered about episodes that will not be finished, because the environments were reset."""
        if self.reward_scales is not None:
            self.reward_scales.forget_unfinished()

    def check_unchanged(self) -> None:
        """Make sure that the networks are as they were when this update was made.

        Raises:
            ValueError: what has changed would be ignored.
        """

    def check_balancers(self) -> None:
        """Check that the restored state of every balancer fits its network.

        Raises:
            ValueError: it does not.
        """

    def saved_state(self) -> dict[str, Any]:
        """What a saved model holds of this update: the scales of rewards and values, if there are any."""
        scales = {"reward_scales": self.reward_scales, "value_scales": self.value_scales}
        return {name: part.state_dict() for name, part in scales.items() if part is not None}

    def load_saved_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `saved_state` returned; `state` may hold more. Without reward scales in it, they begin anew.

        Raises:
            KeyError: there are no value scales, without which the values are unknown.
            ValueError: the scales are of other tasks.
        """
        if self.value_scales is not None:
            self.value_scales.load_state_dict(state["value_scales"])
        if self.reward_scales is not None and "reward_scales" in state:
            self.reward_scales.load_state_dict(state["reward_scales"])

    def check_training_state(self, state: Mapping[str, Any]) -> None:
        """Check the parts of a checkpoint that are this update's own, before anything of it is taken over.

        Raises:
            ValueError: a part does not fit.
        """

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint holds besides: the discounted returns (N,) of unfinished episodes, or nothing."""
        return {} if self.reward_scales is None else {"unfinished_returns": self.reward_scales.returns}

    def set_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned; `state` holds more than that.

        Raises:
            ValueError: there is not one finite number per column; or there are some, and no step has been taken.
        """
        if self.reward_scales is not None:
            returns = state["unfinished_returns"]
            columns = len(state["last_observations"]) if state["progress"]["num_timesteps"] else 0
            check_form("unfinished_returns", returns, Like(np.zeros(columns)))
            self.reward_scales.returns = returns.copy()


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
        online: the online network, its balancer, memory and optimizer.
        weights: all parameters of the online network as one vector; see `BalancedNetwork`.
        target_weights: the same for the target network.
        optimizer: takes one step for all of `weights`.
        memory: turns every update towards what past ones had in common; None if the settings want none.
        private: the parameters of the tasks' own heads; none if all parameters are shared.
    """

    online_type: ClassVar[type[BalancedNetwork]] = BalancedNetwork

    def __init__(
        self,
        policy: MultiTaskQPolicy,
        balancer: Balancer,
        settings: DQNSettings,
        guard: FiniteGuard,
        learning_rate: float,
        held_out: Callable[[], TaskBatch] | None = None,
    ) -> None:
        super().__init__(settings, guard)
        self._policy = policy
        self.network, self.target_network = policy.q_net, policy.q_net_target
        self.settings = settings
        self.td_loss = TDLoss(self.num_tasks, settings.td_loss, settings.huber_delta)
        self.held_out = held_out
        self.online = self.online_type(
            self.network, balancer, settings, guard, lambda vector: self.make_optimizer(vector, learning_rate)
        )
        self.balancer = balancer
        self.shared, self.private = self.online.shared, self.online.private
        self.weights, self.optimizer, self.memory = self.online.weights, self.online.optimizer, self.online.memory
        self.target_weights = ParameterLayout(in_order(self.target_network)).flatten_().detach()
        self.values: Callable[[Tensor], Tensor] = self.network  # action values by the online network
        self.target_values: Callable[[Tensor], Tensor] = self.target_network
        self.chain = None if self.private else chain_of(self.network, self.num_tasks)
        if self.chain is not None:  # without autograd: the same numbers in about half the time
            self.values = self.chain.chain.forward
            self.target_values = Chain(self.target_network.layers).forward
        if policy.own_actions is not None:
            self.values = policy.own_actions.over(self.values)
            self.target_values = policy.own_actions.over(self.target_values)
        if settings.value_normalization == "popart":
            self.value_scales = ValueScales(self.network, self.target_network, self.num_tasks)

    def check_unchanged(self) -> None:
        """See `Update.check_unchanged`."""
        self.online.check_unchanged("q_net")
        if self._policy.optimizer is not self.optimizer:
            raise ValueError("policy.optimizer has been replaced; this agent steps with an optimizer of its own")

    # ----------------------------------------------------------------- the update, from targets to the step

    def __call__(self, batch: TaskBatch, measure_conflict: bool = False) -> Tensor:
        """Take one step of the optimizer on a batch and return the losses (T,).

        Raises:
            FloatingPointError: a number is not finite; the message names it. The weights have not changed then.
        """
        direction, losses = self.direction(batch, measure_conflict)
        self.online.take(direction)
        if self.value_scales is not None:
            self.value_scales.step(self.optimizer.param_groups[0]["lr"])
        self.diagnostics = self.online.diagnostics
        if measure_conflict:
            self.conflict = self.online.conflict
        return losses

    def direction(self, batch: TaskBatch, measure_conflict: bool = False) -> tuple[Tensor, Tensor]:
        """The combined gradient that the balancer makes of the task gradients, and the losses (T,)."""
        gradients = self.task_gradients(batch)
        direction = self.online.direction(gradients, measure_conflict)
        assert gradients.losses is not None  # the engines put them there
        return direction, gradients.losses

    def task_gradients(self, batch: TaskBatch) -> TaskGradients:
        """The gradient of each task's loss, together with the losses."""
        if self.chain is not None and not self.chain.chain.hooked:
            return self.chain_gradients(self.chain, batch)
        with torch.no_grad():
            targets = self.targets(batch)
            self.adapt(targets)
        gradients = self.online.task_gradients(lambda: self.losses(batch, targets))
        if self.value_scales is not None and self.value_scales.is_learned:
            with torch.no_grad():
                values = self.network(batch.observations)
                normalised, of_targets = (
                    self.value_scales.normalised(values),
                    self.value_scales.normalised_targets(targets),
                )
                slope = self.td_loss.losses_and_slope(normalised, batch.actions, of_targets)[1]
                self.value_scales.keep_gradient(values, slope)
        return gradients

    def targets(self, batch: TaskBatch) -> Tensor:
        """Bootstrapped returns (T * B,): reward + discount * Q_target(s', a*); the discount is 0 at a terminal."""
        values = self.target_values(batch.next_observations)  # (T * B, A)
        if self.settings.double_q:
            chosen = self.values(batch.next_observations).argmax(1, keepdim=True)
            best = values.gather(1, chosen).squeeze(1)
        else:
            best = values.amax(1)
        if self.value_scales is not None:  # the scales are positive, so that the best action has the largest output
            best = self.value_scales.raw(self.value_scales.normalised(best, of_target=True))
        targets: Tensor = self.rewards(batch) + batch.discounts * best
        return targets

    def losses(self, batch: TaskBatch, targets: Tensor) -> Tensor:
        """Mean temporal-difference loss of each task, (T,), in the units of its values."""
        values = self.network(batch.observations)
        if self.value_scales is not None:
            values, targets = self.value_scales.normalised(values), self.value_scales.normalised_targets(targets)
        return self.td_loss(values, batch.actions, targets)

    # ----------------------------------------------------------------- the parts

    def make_optimizer(self, vector: nn.Parameter, learning_rate: float) -> FlatAdam:
        """The optimizer of the weights, which are the vector (D,)."""
        options = self._policy.optimizer_kwargs
        return FlatAdam(vector, learning_rate, decoupled=not options.get("weight_decay"), **options)

    @property
    def engine(self) -> Any:
        """Computes the task gradients of any network by autograd."""
        return self.online.engine

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizer of the online network."""
        return [self.optimizer]

    @inference
    def chain_gradients(self, chain: ChainEngine, batch: TaskBatch) -> TaskGradients:
        """The same as `task_gradients`, without autograd, by an engine of the online network's layers."""
        targets = self.targets(batch)
        if chain is self.chain:  # and not that of the guidance, whose batch is held out
            self.adapt(targets)
        values = chain.forward(batch.observations)
        losses, slope = self._losses_and_slope(values, batch.actions, targets, chain is self.chain)
        gradients = chain.backward(slope, losses)
        if self.balancer.looks_at == "gramian":
            _ = gradients.jacobian  # computed here, because entering inference mode once more would cost time
        return gradients

    def _losses_and_slope(
        self, outputs: Tensor, actions: Tensor, targets: Tensor, is_learning: bool
    ) -> tuple[Tensor, Tensor]:
        """The losses (T,) and their derivative by the outputs of the online network, (T * B, A)."""
        if self.value_scales is None:
            return self.td_loss.losses_and_slope(outputs, actions, targets)
        values, targets = self.value_scales.normalised(outputs), self.value_scales.normalised_targets(targets)
        losses, slope = self.td_loss.losses_and_slope(values, actions, targets)
        if is_learning:
            self.value_scales.keep_gradient(outputs, slope)
        return losses, self.value_scales.slope_of_outputs(slope)

    def update_target(self, tau: float) -> None:
        """Move the target network the share `tau` of the way to the online network."""
        self.target_weights.lerp_(self.weights, tau)
        if self.value_scales is not None:
            self.value_scales.update_target(tau)

    def check_balancers(self) -> None:
        """See `Update.check_balancers`."""
        self.online.check_balancer()

    def saved_state(self) -> dict[str, Any]:
        """The memory of past updates, and the scales of rewards and values."""
        return {**self.online.memory_state(), **super().saved_state()}

    def load_saved_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `saved_state` returned. A model that was saved without one of them begins it anew.

        Raises:
            ValueError: the memory is of another number of parameters, or the reward scales are of other tasks.
        """
        super().load_saved_state(state)
        self.online.load_memory_state(state)

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
        return LookaheadGuidance(self.held_out_losses, self.shared.parameters(), self.balancer.guidance_loss)

    def held_out_losses(self) -> Tensor:
        """Temporal-difference loss of each task, (T,), on transitions that are held out from training."""
        assert self.held_out is not None
        batch = self.held_out()
        with torch.no_grad():
            targets = self.targets(batch)
        return self.losses(batch, targets)

    def chain_guidance(self, step: Tensor) -> Tensor:
        """The same as `LookaheadGuidance` of `held_out_losses`, without autograd."""
        assert self.held_out is not None
        batch = self.held_out()
        here = self.weights.clone()
        self.weights.sub_(step)
        try:
            gradients = self.chain_gradients(self._guidance_chain, batch)
            if self.balancer.guidance_loss == "sum":
                return gradients.jacobian[0]
            assert gradients.losses is not None
            return combined(gradients.jacobian, gradients.losses, self.balancer.guidance_loss)
        finally:
            self.weights.copy_(here)

    @cached_property
    def _guidance_chain(self) -> ChainEngine:
        # The gradient of a sum is one row. The other guidance losses need a row for each task.
        rows = 1 if self.balancer.guidance_loss == "sum" else self.num_tasks
        return ChainEngine(self.network.layers, rows, group=None)
