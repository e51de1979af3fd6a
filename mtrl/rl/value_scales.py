"""Values of each task in units of their own: PopArt, which changes the units and keeps the values as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.rl.optimizer import FlatAdam
from mtrl.states import Like, Whole, check_adam, check_form

RATE = 3e-4  # share of a new batch in the statistics; that of Hessel et al. 2019
LEAST = 1e-4  # the smallest deviation; that of van Hasselt et al. 2016
LEAST_SHARE = 1e-2  # the smallest deviation as a share of the mean's size: targets that hardly differ count as equal
FASTER = 10.0  # step size of the tasks' scales and shifts, in step sizes of the network


class ValueScales:
    """Statistics of each task's targets, by which values are learned, and what keeps values when these change.

    PopArt (van Hasselt et al. 2016, https://arxiv.org/abs/1602.07714; for several tasks, Hessel et al. 2019,
    https://arxiv.org/abs/1809.04474). Each task t has a running mean mu and deviation sigma of the targets of its
    updates. The network's value in the task is sigma y + mu, where y is its normalised value, and the loss is that of
    y and the normalised target (target - mu) / sigma. So the losses of tasks are of one size, however large their
    rewards are. When mu and sigma become mu' and sigma', each y becomes (sigma y + mu - mu') / sigma', by which all
    values stay what they were. The same is done to the target network, whose values are in the same units.

    Where each task has a last layer of its own, y is the output of that layer, and its weights and bias take the
    change, as in the papers. A last layer that all tasks share cannot: a change that keeps the values of one task would
    change those of the others. There, y = a n + c, where n is the output of the network and each task has a positive
    scale a and a shift c, which take the change. They are learned from the loss like a last layer of the task's own.
    The greedy action is that of the largest n in every task, so that an agent need not know the task in order to act.

    Before the first batch all values are 0. The first batch sets the statistics, and y starts as the output of the new
    network, since there is nothing learned yet that would have to be kept. Thus a factor on all rewards of a task
    changes no update of Q-learning, as long as no deviation is at its floor.

    Args:
        online: the network, or the module of all networks, that is learned. A module in it with a method
            `layer_of_tasks`, such as `TaskHeads`, is a last layer of each task's own: the method returns weights
            (T, ...) and biases (T, ...).
        target: the same for the target network.
        num_tasks: T.
        num_networks: C, how many networks with values of their own there are. Default 1.

    Attributes:
        count: the number of batches so far.
        mean: mu, (T,).
        variance: the running variance of the targets, (T,): their second moment without the square of the mean.
        deviation: sigma, (T,): the root of the variance, but at least 0.0001 and a hundredth of the mean's size; 1
            where all targets were 0. Before the first batch it is 0.
    """

    def __init__(self, online: nn.Module, target: nn.Module, num_tasks: int, num_networks: int = 1) -> None:
        self._layers: list[Any] = [
            module for part in (online, target) for module in part.modules() if hasattr(module, "layer_of_tasks")
        ]
        device = next(online.parameters()).device
        self.count = 0
        self.mean, self.variance, self.deviation = torch.zeros(3, num_tasks, dtype=torch.float64, device=device)
        # The logarithms of the scales a, and the shifts c, of the online and of the target network.
        zeros = torch.zeros(2, 2, num_networks, num_tasks, dtype=torch.float64, device=device)
        self._online, self._target = zeros
        self._vector = nn.Parameter(self._online.view(-1))
        self._optimizer = FlatAdam(self._vector, 0.0)
        self._gradient: Tensor | None = None

    @property
    def is_learned(self) -> bool:
        """Whether scales and shifts are learned, because the tasks share the last layer."""
        return not self._layers

    # ----------------------------------------------------------------- the statistics

    def adapt(self, targets: Tensor) -> None:
        """Let the statistics follow the targets of a batch, (T * B,), task-major, and keep all values as they are.

        They are running means of all batches, in which the first ones count alike. A batch with a target that is not
        finite is left out: it would spoil the statistics for good.
        """
        variance, mean = torch.var_mean(targets.view(len(self.mean), -1).double(), 1, correction=0)
        if not math.isfinite(variance.sum().item()):
            return
        self.count += 1
        rate = RATE / -math.expm1(self.count * math.log1p(-RATE))  # RATE / (1 - (1 - RATE)^count)
        old_mean, old_deviation = self.mean.clone(), self.deviation.clone()
        shift = mean - old_mean
        # The new second moment without the square of the new mean, in a form that is never negative.
        self.variance.add_(shift.square(), alpha=rate).lerp_(variance, rate)
        self.mean.add_(shift, alpha=rate)
        self.deviation.copy_(_deviation(self.mean, self.variance))
        if self.count > 1:
            self._preserve(old_deviation / self.deviation, (old_mean - self.mean) / self.deviation)

    def _preserve(self, factor: Tensor, shift: Tensor) -> None:
        """Make each normalised value y of task t `factor[t] * y + shift[t]`."""
        for module in self._layers:
            weight, bias = (part.detach() for part in module.layer_of_tasks())
            weight.mul_(factor.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)))
            by_task = [part.to(bias.dtype).view(-1, *[1] * (bias.ndim - 1)) for part in (factor, shift)]
            bias.mul_(by_task[0]).add_(by_task[1])
        if self.is_learned:
            logarithm = factor.log()
            for log_scale, own_shift in (self._online, self._target):
                log_scale.add_(logarithm)
                own_shift.mul_(factor).add_(shift)

    # ----------------------------------------------------------------- from one unit to the other

    def normalised(self, outputs: Tensor, of_target: bool = False) -> Tensor:
        """The normalised values of the outputs of the networks: y of n.

        Args:
            outputs: of the C networks, (C, T * B, ...), task-major; of one network without the first axis.
            of_target: whether they are those of the target network. Default False.
        """
        if not self.is_learned:
            return outputs
        log_scale, shift = self._target if of_target else self._online
        scale, shift = log_scale.exp().to(outputs.dtype), shift.to(outputs.dtype)
        by_task = outputs.reshape(*scale.shape, -1)
        return torch.addcmul(shift[:, :, None], by_task, scale[:, :, None]).view(outputs.shape)

    def raw(self, normalised: Tensor) -> Tensor:
        """The values sigma y + mu, in units of rewards, of normalised values (T * B,)."""
        deviation, mean = self._as_columns(normalised)
        values: Tensor = torch.addcmul(mean, normalised.view(len(mean), -1), deviation)
        return values.view(-1)

    def normalised_targets(self, targets: Tensor) -> Tensor:
        """The normalised targets (T * B,) of targets (T * B,)."""
        deviation, mean = self._as_columns(targets)
        return targets.view(len(mean), -1).sub(mean).div_(deviation).view(-1)

    def _as_columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.deviation.to(like.dtype)[:, None], self.mean.to(like.dtype)[:, None]

    def of_actor(self, temperatures: Tensor) -> tuple[Tensor, Tensor]:
        """Temperatures divided by the deviation, and the mean divided by it, each (T,)."""
        return temperatures / self.deviation.to(temperatures.dtype), (self.mean / self.deviation).to(temperatures.dtype)

    # ----------------------------------------------------------------- learning the scales and shifts

    def slope_of_outputs(self, slope: Tensor) -> Tensor:
        """The derivative of the losses by the outputs, of that by the normalised values; see `normalised`."""
        if not self.is_learned:
            return slope
        scale = self._online[0].exp().to(slope.dtype)
        by_task: Tensor = slope.reshape(*scale.shape, -1) * scale[:, :, None]
        return by_task.view(slope.shape)

    def keep_gradient(self, outputs: Tensor, slope: Tensor) -> None:
        """Keep the gradient of scales and shifts for `step`.

        Args:
            outputs: the outputs of the networks, as for `normalised`.
            slope: the derivative of the losses by the normalised values.
        """
        if self.is_learned:
            by_task = slope.reshape(*self._online.shape[1:], -1)
            by_scale = (by_task * outputs.reshape(by_task.shape)).sum(2) * self._online[0].exp()
            self._gradient = torch.cat((by_scale.flatten(), by_task.sum(2).double().flatten()))

    def step(self, learning_rate: float) -> None:
        """Take one step of Adam with scales and shifts along the gradient that was kept."""
        if self._gradient is not None:
            self._optimizer.param_groups[0]["lr"] = FASTER * learning_rate
            self._optimizer.update(self._gradient)
            self._gradient = None

    def update_target(self, tau: float) -> None:
        """Move the scales and shifts of the target network the share `tau` of the way to the online network's."""
        if self.is_learned:
            self._target.lerp_(self._online, tau)

    # ----------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The statistics, the scales and shifts, and the state of their optimizer, which a saved model holds."""
        state = {"count": self.count, "mean": self.mean, "variance": self.variance}
        if not self.is_learned:
            return state
        return {**state, "online": self._online, "target": self._target, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore what `state_dict` returned. `strict` is what Stable-Baselines3 gives, and always so here.

        Raises:
            ValueError: the state is not that of as many tasks and networks, or holds a number that cannot be.
        """
        own = self.state_dict()
        of_optimizer = {"optimizer": dict} if self.is_learned else {}
        variance = Like(self.variance, least=0)
        check_form("value_scales", state, {**own, "count": Whole(), "variance": variance, **of_optimizer})
        if self.is_learned:
            check_adam("value_scales['optimizer']", state["optimizer"], self._optimizer)
            self._optimizer.load_state_dict(state["optimizer"])
        for name in own.keys() - {"count", "optimizer"}:
            own[name].copy_(state[name])
        self.count = state["count"]
        self.deviation.copy_(_deviation(self.mean, self.variance) if self.count else torch.zeros_like(self.mean))
        self._gradient = None


def _deviation(mean: Tensor, variance: Tensor) -> Tensor:
    """The deviation that goes with a mean and a variance, each (T,), with its floor."""
    size = mean.abs()
    floored = torch.maximum(variance.sqrt(), LEAST_SHARE * size).clamp(min=LEAST)
    return torch.where((size == 0) & (variance == 0), 1.0, floored)
