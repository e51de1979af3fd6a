"""A network that all tasks share, and the step that a balancer makes of its task gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.balancers import Balancer
from mtrl.conflict import conflict_metrics
from mtrl.gradients import ParameterLayout, TaskGradients
from mtrl.memory import DirectionMemory
from mtrl.rl.engines import Engine, checked, engine_of
from mtrl.rl.feature_networks import EXTRACTORS
from mtrl.rl.networks import in_order, private_parameters, shared_part
from mtrl.rl.nonfinite import FiniteGuard
from mtrl.rl.optimizer import FlatAdam
from mtrl.rl.settings import ReplaySettings

MakeOptimizer = Callable[[nn.Parameter], FlatAdam]


class BalancedNetwork:
    """A network whose weights are one vector, with what turns its task gradients into a step.

    The balancer combines the task gradients of the parameters that the tasks share. The memory turns the result, and
    the optimizer takes one step on all weights.

    Args:
        network: the network; its parameters become one vector.
        balancer: combines the task gradients.
        settings: the settings of the memory and of the largest norm.
        guard: checks that all numbers are finite.
        make_optimizer: makes the optimizer of the vector of all weights.
        what: what messages call the loss of this network. Default `"loss"`.

    Attributes:
        shared: the part of the network that the tasks share.
        private: the parameters of the tasks' own heads, `num_private` numbers; none if all parameters are shared.
        weights: all parameters as one vector, which shares their memory. The shared parameters come first.
        optimizer: takes one step for all of `weights`.
        memory: turns every update towards what past ones had in common; None if the settings want none.
        diagnostics: what the balancer reported about the last step, by name.
        conflict: how much the task gradients conflicted when that was last measured, by name.
    """

    def __init__(
        self,
        network: Any,
        balancer: Balancer,
        settings: ReplaySettings,
        guard: FiniteGuard,
        make_optimizer: MakeOptimizer,
        what: str = "loss",
    ) -> None:
        self.network = network
        self.shared = shared_part(network)
        self.private = private_parameters(network)
        self.num_private = sum(parameter.numel() for parameter in self.private)
        self.balancer = balancer
        self.guard = guard
        self.max_grad_norm = settings.max_grad_norm
        self.what = what
        # With all weights in one vector and their gradient in another, the optimizer takes one fused step over both.
        vector = ParameterLayout(in_order(network)).flatten_()
        self.weights = vector.detach()
        self.optimizer = make_optimizer(vector)
        self.memory = DirectionMemory(settings.memory_angle, settings.memory_decay) if settings.memory_angle else None
        self.diagnostics: Mapping[str, Tensor] = {}
        self.conflict: dict[str, Tensor] = {}
        extractor = getattr(network, "features_extractor", None)
        self._engine_is_known = extractor is None or type(extractor) in EXTRACTORS.values()

    def check_unchanged(self, name: str) -> None:
        """Make sure that the weights still lie in one vector, unfrozen and without hooks.

        Args:
            name: what messages call the network.

        Raises:
            ValueError: what has changed would be ignored.
        """
        memory, number = self.weights.untyped_storage().data_ptr(), 0
        for key, weight in self.network.named_parameters():
            number += weight.numel()
            if not weight.requires_grad:
                raise ValueError(f"{name}.{key} is frozen; this agent trains all of its network")
            if weight._backward_hooks or weight._post_accumulate_grad_hooks:
                raise ValueError(f"{name}.{key} has a hook, which this agent would not call")
            if weight.untyped_storage().data_ptr() != memory:
                raise ValueError(
                    f"{name}.{key} is not the parameter that the agent was made with; copy values into it with "
                    f"{name}.load_state_dict, or give a policy class with a make_network of its own"
                )
        if number != self.weights.numel():
            raise ValueError(f"{name} has lost parameters since the agent was made")

    # ----------------------------------------------------------------- from losses to rows

    @cached_property
    def engine(self) -> Engine:
        """Computes the task gradients of any network by autograd."""
        return engine_of(self.shared, len(self.guard.tasks), self.network.last_shared_layer)

    def task_gradients(self, losses: Callable[[], Tensor]) -> TaskGradients:
        """The gradient of each task's loss with respect to the shared parameters, together with the losses.

        The ordinary gradients of the tasks' own heads are left in their `.grad`.

        Args:
            losses: computes the losses (T,) of one batch. It may be called several times.
        """
        if not self._engine_is_known:
            parts = (self.network, self.shared, self.network.last_shared_layer)
            self.engine = checked(self.engine, losses, *parts)
            self._engine_is_known = True
        for parameter in self.private:
            parameter.grad = None
        with self.engine.record():
            values = losses()
        return self.engine.backward(values)

    def own_gradient(self) -> Tensor:
        """The ordinary gradient of the tasks' own heads, which the last `task_gradients` left in their `.grad`.

        Raises:
            FloatingPointError: it is not finite.
        """
        gradient = torch.cat([accumulated(parameter).flatten() for parameter in self.private])
        if not bool(gradient.isfinite().all()):
            raise FloatingPointError("the gradient of the tasks' own heads is not finite")
        return gradient

    # ----------------------------------------------------------------- from rows to a step

    def direction(self, gradients: TaskGradients, measure_conflict: bool = False) -> Tensor:
        """The combined gradient that the balancer makes of the task gradients.

        The gradients of the tasks' own heads, if there are any, follow those of the shared parameters.

        Raises:
            FloatingPointError: a number is not finite; the message names it.
        """
        losses = gradients.losses
        assert losses is not None  # the engines put them there
        with torch.no_grad():
            self.guard.check(f"the {self.what}", losses.tolist())
            balance = self.balancer(gradients, losses)
            self.guard.check("the balancer's weight", balance.coefficients.tolist())
            direction = balance.update(gradients)
            self.diagnostics = balance.diagnostics
            if measure_conflict:
                self.conflict = conflict_metrics(gradients.gramian)
        return torch.cat((direction, self.own_gradient())) if self.private else direction

    def take(self, direction: Tensor) -> None:
        """Take one step of the optimizer along a combined gradient, which the memory turns first."""
        if self.memory is not None:
            self.turn(self.memory, direction)
        if self.max_grad_norm is not None:
            self.clip(direction, self.max_grad_norm)
        self.optimizer.update(direction)

    def turn(self, memory: DirectionMemory, direction: Tensor) -> None:
        """Turn the shared part of `direction` in place towards what past directions had in common."""
        memory.turn_(direction[: len(direction) - self.num_private])

    def clip(self, direction: Tensor, max_norm: float) -> None:
        """Scale `direction` (D,) down to `max_norm`, in place, as `torch.nn.utils.clip_grad_norm_` does."""
        scale = max_norm / (torch.linalg.vector_norm(direction).item() + 1e-6)
        if scale < 1:
            direction.mul_(scale)

    # ----------------------------------------------------------------- state

    def memory_state(self) -> dict[str, Any]:
        """What a saved model holds of the memory; nothing if there is none."""
        return {} if self.memory is None else {"memory": self.memory.state_dict()}

    def load_memory_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `memory_state` returned. A model that was saved without a memory begins it anew.

        Raises:
            ValueError: the memory is of another number of parameters.
        """
        if self.memory is None:
            return
        self.memory.reset()
        if "memory" in state:
            self.memory.load_state_dict(state["memory"])
            self.memory.check(self.weights.numel() - self.num_private)

    def check_balancer(self) -> None:
        """Check that the balancer's restored state is that of as many parameters as this network shares.

        Raises:
            ValueError: it is not.
        """
        self.balancer.check_state(self.weights.numel() - self.num_private)


def accumulated(parameter: nn.Parameter) -> Tensor:
    """The `.grad` of a parameter; zeros if no loss has reached it."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
