"""One update of a multi-task soft actor-critic: targets, critics, actor, temperatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtrl.balancers import Balancer
from mtrl.files import one_line
from mtrl.gradients import ParameterLayout, TaskGradients
from mtrl.guidance import LookaheadGuidance
from mtrl.rl.actor_critic import MultiTaskSACPolicy
from mtrl.rl.balanced import BalancedNetwork
from mtrl.rl.networks import in_order
from mtrl.rl.nonfinite import FiniteGuard
from mtrl.rl.optimizer import FlatAdam
from mtrl.rl.replay import TaskBatch
from mtrl.rl.sac_chain import chains_of, lowest
from mtrl.rl.settings import SACSettings, first_temperature
from mtrl.rl.update import Update
from mtrl.rl.value_scales import ValueScales
from mtrl.states import check_adam, check_form

ACTOR = "actor_"
"""Begins the names of what concerns the actor, in logs and in files; those of the critics have no such beginning."""

Role = Literal["critic", "actor"]


class ActorCriticUpdate(Update):
    """Updates critics and an actor that all tasks share, each by one gradient per task and a balancer of its own.

    The order of the steps and the losses are those of Stable-Baselines3's SAC (Haarnoja et al. 2018,
    https://arxiv.org/abs/1812.05905); with one task and equal weights the numbers are, too.

    Args:
        policy: actor, critics and target critics.
        balancers: combine the task gradients, by the network whose gradients they are: `critic` and `actor`.
        settings: how to update.
        guard: checks that all numbers are finite.
        learning_rate: the learning rate of the first update.
        seed: of the generator of the noise from which actions are made.
        held_out: returns a batch that the networks are never trained on, for guidance. Default: none.
        actions_of_tasks: how many numbers an action of each task has. Default: all of the action space.

    Attributes:
        critic: the critics, their balancer, memory and optimizer.
        actor: the same for the actor.
        target_weights: all parameters of the target critics as one vector.
        generator: draws the noise.
        chains: computes the gradients without autograd; None where the networks are no chains of layers.
        learns_temperatures: whether there is a temperature to learn.
        target_entropy: the entropy at which each task's temperature aims, (T,).
        actor_losses: the losses of the actor at the last update, (T,).
    """

    def __init__(
        self,
        policy: MultiTaskSACPolicy,
        balancers: Mapping[Role, Balancer],
        settings: SACSettings,
        guard: FiniteGuard,
        learning_rate: float,
        seed: int,
        held_out: Callable[[], TaskBatch] | None = None,
        actions_of_tasks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(settings, guard)
        self.policy, self.settings, self.held_out = policy, settings, held_out

        def make_optimizer(vector: nn.Parameter) -> FlatAdam:
            options = policy.optimizer_kwargs
            return FlatAdam(vector, learning_rate, decoupled=not options.get("weight_decay"), **options)

        self.critic = BalancedNetwork(policy.critic, balancers["critic"], settings, guard, make_optimizer)
        self.actor = BalancedNetwork(
            policy.actor, balancers["actor"], settings, guard, make_optimizer, "loss of the actor"
        )
        self.target_weights = ParameterLayout(in_order(policy.critic_target)).flatten_().detach()
        if settings.value_normalization == "popart":
            number = len(policy.critic.networks)
            self.value_scales = ValueScales(policy.critic, policy.critic_target, self.num_tasks, number)
        self.chains = chains_of(policy, self.num_tasks, self.value_scales)
        self.learns_temperatures = isinstance(settings.ent_coef, str)
        policy.log_ent_coef = nn.Parameter(self._first_log_temperatures())
        self.temperature_optimizer = FlatAdam(policy.log_ent_coef, learning_rate)
        self.target_entropy = self._target_entropy(actions_of_tasks or (policy.num_actions,) * self.num_tasks)
        self.generator = torch.Generator().manual_seed(seed)
        self.actor_losses = torch.zeros(self.num_tasks, device=policy.device)
        self._log_densities = torch.zeros(self.num_tasks, device=policy.device)  # their means at the last update

    # ----------------------------------------------------------------- the update, from targets to the steps

    def __call__(self, batch: TaskBatch, measure_conflict: bool = False) -> Tensor:
        """Take one step with the critics and one with the actor, and return the losses of the critics, (T,).

        Raises:
            FloatingPointError: a number is not finite; the message names it. If it is one of the actor's, the critics
                have taken their step.
        """
        temperatures = self.temperatures
        noise = self.noise(batch)
        with torch.no_grad():
            targets = self.targets(batch, temperatures)
            self.adapt(targets)
        critic_losses = self._step(self.critic, self.critic_gradients(batch, targets), measure_conflict)
        if self.value_scales is not None:
            self.value_scales.step(self.critic.optimizer.param_groups[0]["lr"])
        of_actor = self.actor_gradients(batch, temperatures, noise)
        self.actor_losses = self._step(self.actor, of_actor, measure_conflict)
        if self.learns_temperatures:
            self.temperature_optimizer.update(-(self._log_densities + self.target_entropy))
        self.diagnostics = {**self.critic.diagnostics, **_of_actor(self.actor.diagnostics)}
        if measure_conflict:
            self.conflict = {**self.critic.conflict, **_of_actor(self.actor.conflict)}
        return critic_losses

    def _step(self, network: BalancedNetwork, gradients: TaskGradients, measure_conflict: bool) -> Tensor:
        network.take(network.direction(gradients, measure_conflict))
        assert gradients.losses is not None  # the engines put them there
        return gradients.losses.clone()

    def critic_gradients(self, batch: TaskBatch, targets: Tensor) -> TaskGradients:
        """The gradient of each task's `critic_losses`, by the chains of layers if the networks are such."""
        if self.chains is not None and not self.chains.hooked:
            return self.chains.critic_gradients(batch, targets)
        gradients = self.critic.task_gradients(lambda: self.critic_losses(batch, targets))
        if self.value_scales is not None and self.value_scales.is_learned:
            with torch.no_grad():
                outputs = self.policy.critic(batch.observations, batch.actions)
                errors = self.value_scales.normalised(outputs) - self.value_scales.normalised_targets(targets)
                self.value_scales.keep_gradient(outputs, errors.div_(len(targets) // self.num_tasks))
        return gradients

    def actor_gradients(self, batch: TaskBatch, temperatures: Tensor, noise: Tensor) -> TaskGradients:
        """The gradient of each task's `losses_of_actor`."""
        if self.chains is not None and not self.chains.hooked:
            gradients, log_density = self.chains.actor_gradients(batch, temperatures, noise)
            self._log_densities = log_density.view(self.num_tasks, -1).mean(1)
            return gradients
        with frozen(self.policy.critic):
            return self.actor.task_gradients(lambda: self.losses_of_actor(batch, temperatures, noise))

    def _target_entropy(self, actions_of_tasks: Sequence[int]) -> Tensor:
        """The setting for every task, or minus the number of numbers in an action of the task, (T,)."""
        given = self.settings.target_entropy
        wanted = [-float(size) if given == "auto" else float(given) for size in actions_of_tasks]
        return torch.tensor(wanted, device=self.policy.device)

    def _first_log_temperatures(self) -> Tensor:
        """The logarithms of the temperatures before the first update, (T,)."""
        first = first_temperature(self.settings.ent_coef)
        # A temperature of 0 has no logarithm. The smallest positive number is 0 in all products here.
        return torch.full((self.num_tasks,), max(first, 1e-45), device=self.policy.device).log()

    @property
    def temperatures(self) -> Tensor:
        """The weight of the entropy in each task, (T,)."""
        return self.policy.log_ent_coef.detach().exp()

    def targets(self, batch: TaskBatch, temperatures: Tensor) -> Tensor:
        """Bootstrapped returns (T * B,): reward + discount * (lowest target value - temperature * log density)."""
        rows, noise = batch.next_observations, self.noise(batch)
        if self.chains is not None and not self.chains.hooked:
            actions, log_density = self.chains.sample(rows, noise)
            values = self.chains.target_values(rows, actions)
        else:
            actions, log_density = self.policy.actor.sample(rows, noise)
            values = lowest(self.policy.critic_target(rows, actions), self.value_scales, of_target=True)
            if self.value_scales is not None:
                values = self.value_scales.raw(values)
        soft = values - self._by_row(temperatures, batch) * log_density
        targets: Tensor = self.rewards(batch) + batch.discounts * soft
        return targets

    def critic_losses(self, batch: TaskBatch, targets: Tensor) -> Tensor:
        """Half the squared error, summed over the critics and averaged over the rows of each task, (T,).

        Errors are in the units of the task's values.
        """
        values = self.policy.critic(batch.observations, batch.actions)  # (C, T * B)
        if self.value_scales is not None:
            values, targets = self.value_scales.normalised(values), self.value_scales.normalised_targets(targets)
        errors: Tensor = values - targets
        return 0.5 * errors.square().sum(0).view(self.num_tasks, -1).mean(1)

    def losses_of_actor(self, batch: TaskBatch, temperatures: Tensor, noise: Tensor) -> Tensor:
        """Temperature * log density - lowest value, averaged over the rows of each task, (T,).

        With `value_normalization` this is divided by the deviation of the task's targets, as policy gradients are in
        Hessel et al. 2019. It changes how much the tasks weigh, and not what is best in a task, so that the temperature
        keeps its meaning.
        """
        actions, log_density = self.policy.actor.sample(batch.observations, noise)
        self._log_densities = log_density.detach().view(self.num_tasks, -1).mean(1)
        values = lowest(self.policy.critic(batch.observations, actions), self.value_scales)
        if self.value_scales is not None:
            temperatures, means = self.value_scales.of_actor(temperatures)
            values = values + self._by_row(means, batch)
        per_row: Tensor = self._by_row(temperatures, batch) * log_density - values
        return per_row.view(self.num_tasks, -1).mean(1)

    def noise(self, batch: TaskBatch) -> Tensor:
        """Standard normal numbers (T * B, A). They are drawn on the CPU, so that they are the same on every device."""
        shape = (len(batch.rewards), self.policy.num_actions)
        return torch.randn(shape, generator=self.generator).to(batch.rewards.device)

    def _by_row(self, values: Tensor, batch: TaskBatch) -> Tensor:
        """A number for each task, (T,), as one for each row of a batch, (T * B,)."""
        return values.repeat_interleave(len(batch.rewards) // self.num_tasks)

    def update_target(self, tau: float) -> None:
        """Move the target critics the share `tau` of the way to the critics."""
        self.target_weights.lerp_(self.critic.weights, tau)
        if self.value_scales is not None:
            self.value_scales.update_target(tau)

    # ----------------------------------------------------------------- guidance of the balancers

    def guide(self) -> None:
        """Give the balancers that want it their guidance; see `SharedUpdate.guide`."""
        for network, losses in ((self.critic, self.held_out_critic_losses), (self.actor, self.held_out_actor_losses)):
            rate = network.optimizer.param_groups[0]["lr"]
            if network.balancer.wants_guidance and rate > 0:
                balancer: Any = network.balancer
                guidance = LookaheadGuidance(losses, network.shared.parameters(), balancer.guidance_loss)
                balancer.set_guidance(guidance, eta=rate)

    def held_out_critic_losses(self) -> Tensor:
        """The loss of the critics for each task, (T,), on transitions that are held out from training."""
        assert self.held_out is not None
        batch = self.held_out()
        with torch.no_grad():
            targets = self.targets(batch, self.temperatures)
        return self.critic_losses(batch, targets)

    def held_out_actor_losses(self) -> Tensor:
        """The loss of the actor for each task, (T,), on transitions that are held out from training."""
        assert self.held_out is not None
        batch = self.held_out()
        kept = self._log_densities
        try:
            return self.losses_of_actor(batch, self.temperatures, self.noise(batch))
        finally:
            self._log_densities = kept

    # ----------------------------------------------------------------- state

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of critics, actor and temperatures."""
        return [self.critic.optimizer, self.actor.optimizer, self.temperature_optimizer]

    def check_unchanged(self) -> None:
        """See `Update.check_unchanged`."""
        self.critic.check_unchanged("critic")
        self.actor.check_unchanged("actor")
        if self.policy.optimizer is not self.critic.optimizer:
            raise ValueError("policy.optimizer has been replaced; this agent steps with an optimizer of its own")

    def check_balancers(self) -> None:
        """See `Update.check_balancers`."""
        self.critic.check_balancer()
        self.actor.check_balancer()

    def saved_state(self) -> dict[str, Any]:
        """The optimizers, balancer and memories that are not the critics', and what every update saves."""
        return {
            **super().saved_state(),
            **self.critic.memory_state(),
            **_of_actor(self.actor.memory_state()),
            "actor_optimizer": self.actor.optimizer.state_dict(),
            "actor_balancer": self.actor.balancer.state_dict(),
            "temperature_optimizer": self.temperature_optimizer.state_dict(),
        }

    def load_saved_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `saved_state` returned; see `Update.load_saved_state`.

        Temperatures are those that were learned, but where the settings have changed since, to a number or to `auto_`
        and a first temperature, they are what these say.

        Raises:
            KeyError: a part is missing.
            ValueError: a part does not fit.
        """
        super().load_saved_state(state)
        now = self.settings.ent_coef
        has_new_start = now not in ("auto", state.get("settings", {}).get("ent_coef"))
        if has_new_start or not self.learns_temperatures:
            self.policy.log_ent_coef.detach().copy_(self._first_log_temperatures())
        for part in ("actor_optimizer", "actor_balancer", "temperature_optimizer"):
            check_form(part, state[part], dict)
        self.critic.load_memory_state(state)
        self.actor.load_memory_state({"memory": state["actor_memory"]} if "actor_memory" in state else {})
        self.actor.optimizer.load_state_dict(state["actor_optimizer"])
        self.temperature_optimizer.load_state_dict(state["temperature_optimizer"])
        self.actor.balancer.load_state_dict(state["actor_balancer"])

    def check_training_state(self, state: Mapping[str, Any]) -> None:
        """See `Update.check_training_state`."""
        check_adam("agent['actor_optimizer']", state["actor_optimizer"], self.actor.optimizer)
        check_adam("agent['temperature_optimizer']", state["temperature_optimizer"], self.temperature_optimizer)
        check_form("agent['noise']", state["noise"], self.generator.get_state())
        check_form("agent['actor_losses']", state["actor_losses"], self.actor_losses)

    def training_state(self) -> dict[str, Any]:
        """The place of the generator of noise and the last losses of the actor, besides what every update has."""
        own = {"noise": self.generator.get_state(), "actor_losses": self.actor_losses}
        return {**super().training_state(), **own}

    def set_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned.

        Raises:
            ValueError: the generator is in no possible state, or see `Update.set_training_state`.
        """
        super().set_training_state(state)
        try:
            self.generator.set_state(state["noise"])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"agent['noise'] is no state of a generator: {one_line(error)}") from None
        self.actor_losses = state["actor_losses"].to(self.policy.device)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """A context in which a module's parameters get no gradients."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _of_actor(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{ACTOR}{name}": part for name, part in parts.items()}
