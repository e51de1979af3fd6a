"""The cases of `python -m benchmarks.training --algorithm sac`: soft actor-critic on the landers with two throttles.

All compared cases have, besides what `benchmarks/training.py` lists, an actor 8 -> 256 -> 128 -> 4 (the mean and the
deviation of two throttles) and two critics 10 -> 256 -> 128 -> 1, which are 107,398 parameters in all. There are 2
updates per vector step. An update takes one Adam step each with the critics, the actor and the temperature, down the
losses of Stable-Baselines3, and moves the target critics by the share 0.01. No gradient is clipped. Actions are drawn
from the actor. The cases are:

* "ours equal", "ours pcgrad": `mtrl.rl.MultiTaskSAC` with that balancer for the critics and for the actor;
* "SB3 SAC": the unchanged `stable_baselines3.SAC` on one batch of 192, without balancing;
* "SB3 SAC + TorchJD PCGrad": `TorchJDSAC`, which a user of both libraries would write.

These differences remain. Ours has one temperature per task, and the others have one for all tasks. "SB3 SAC" draws its
batch from all columns alike, and not 64 transitions of each task. Ours checks that all numbers are finite, measures at
every 250th update how much the tasks conflict, and flushes subnormal numbers to zero. It computes no gradients of the
actor's loss for the critics' weights; Stable-Baselines3 does, and discards them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from torch import Tensor

from agents import MultiTaskSAC
from benchmarks.common import torchjd_pcgrad
from benchmarks.training_case import BATCH, TASKS, Algorithm, batch_of_tasks
from envs import CONTINUOUS_TASKS


class TorchJDSAC(SAC):
    """Stable-Baselines3's SAC with one loss per task for the critics and for the actor, combined by TorchJD's PCGrad.

    Args:
        *args: arguments of `SAC`.
        tasks: the number of tasks. Each has the same number of columns, which are neighbours.
        **kwargs: further arguments of `SAC`. The temperature must be learned, which is the default.
    """

    replay_buffer: ReplayBuffer

    def __init__(self, *args: Any, tasks: int = TASKS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tasks = tasks

    def train(self, gradient_steps: int, batch_size: int = TASKS * BATCH) -> None:
        """Train as `SAC.train` does, except that there is one loss per task, and PCGrad combines their gradients."""
        assert self.ent_coef_optimizer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer])
        # No other options of TorchJD were measurably faster. Its `autogram` refuses these losses, because the networks
        # are also called without a backward pass. The actor's losses cost no gradients of the critics' weights.
        fill_critic = torchjd_pcgrad(list(self.critic.parameters()), optimize_gramian_computation=True)
        fill_actor = torchjd_pcgrad(list(self.actor.parameters()), optimize_gramian_computation=True)
        of_critic, of_actor, temperatures = [], [], []
        for _ in range(gradient_steps):
            batch = self.sample(batch_size // self.tasks)
            actions, log_density = self.actor.action_log_prob(batch.observations)
            temperature = self.step_temperature(log_density)
            temperatures.append(temperature.item())

            losses = self.critic_losses(batch, temperature)
            of_critic.append(losses.mean().item())
            self.critic.optimizer.zero_grad()
            fill_critic(losses)
            self.critic.optimizer.step()

            losses = self.actor_losses(batch, actions, log_density, temperature)
            of_actor.append(losses.mean().item())
            self.actor.optimizer.zero_grad()
            fill_actor(losses)
            self.actor.optimizer.step()

            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/ent_coef", np.mean(temperatures))
        self.logger.record("train/actor_loss", np.mean(of_actor))
        self.logger.record("train/critic_loss", np.mean(of_critic))

    def step_temperature(self, log_density: Tensor) -> Tensor:
        """Learn the temperature of all tasks as `SAC.train` does, and return what it was before."""
        assert self.log_ent_coef is not None
        assert self.ent_coef_optimizer is not None
        assert isinstance(self.target_entropy, float)
        temperature = self.log_ent_coef.detach().exp()
        loss = -(self.log_ent_coef * (log_density + self.target_entropy).detach()).mean()
        self.ent_coef_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.ent_coef_optimizer.step()
        return temperature

    def critic_losses(self, batch: ReplayBufferSamples, temperature: Tensor) -> Tensor:
        """The loss of both critics for each task (T,) on a task-major batch. Their mean is that of `SAC.train`."""
        with torch.no_grad():
            actions, log_density = self.actor.action_log_prob(batch.next_observations)
            lowest = torch.cat(self.critic_target(batch.next_observations, actions), dim=1).amin(1, keepdim=True)
            soft = lowest - temperature * log_density.reshape(-1, 1)
            targets = batch.rewards + (1 - batch.dones) * self.gamma * soft
        errors = torch.cat(self.critic(batch.observations, batch.actions), dim=1) - targets
        return 0.5 * errors.square().sum(1).view(self.tasks, -1).mean(1)

    def actor_losses(
        self, batch: ReplayBufferSamples, actions: Tensor, log_density: Tensor, temperature: Tensor
    ) -> Tensor:
        """The loss of the actor for each task (T,) on a task-major batch. Their mean is that of `SAC.train`."""
        lowest = torch.cat(self.critic(batch.observations, actions), dim=1).amin(1)
        return (temperature * log_density - lowest).view(self.tasks, -1).mean(1)

    def sample(self, each: int) -> ReplayBufferSamples:
        """Draw `each` transitions of every task. The batch is task-major."""
        return batch_of_tasks(self.replay_buffer, self.tasks, each)


ALGORITHM = Algorithm(
    ours=MultiTaskSAC,
    sb3=SAC,
    torchjd=TorchJDSAC,
    tasks=CONTINUOUS_TASKS,
    balancers=("critic_balancer", "actor_balancer"),
    networks=("actor", "critic"),
    alike={"gradient_steps": 2, "tau": 0.01, "target_update_interval": 1},
    of_ours={},
    of_theirs={},
)
