"""The cases of `python -m benchmarks.training --algorithm dqn`, which is the default.

All cases have the network 8 -> 256 -> 128 -> 4 and 4 updates per vector step, a Huber loss, single Q-learning, gradient
clipping, a constant epsilon, and one target update per vector step. "SB3 DQN" is the unchanged
`stable_baselines3.DQN`, and "SB3 DQN + TorchJD PCGrad" is `TorchJDDQN`. `benchmarks/training.py` lists what is equal in
the cases of every algorithm.
"""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from agents import MultiTaskDQN
from benchmarks.common import torchjd_pcgrad
from benchmarks.training_case import BATCH, ENVIRONMENTS, TASKS, Algorithm, batch_of_tasks
from envs import DEFAULT_TASKS

UPDATES = 4  # per vector step


class TorchJDDQN(DQN):
    """Stable-Baselines3's DQN with one loss per task, combined by TorchJD's PCGrad."""

    replay_buffer: ReplayBuffer

    def train(self, gradient_steps: int, batch_size: int = TASKS * BATCH) -> None:
        """Train as `DQN.train` does, except that there is one loss per task, and PCGrad combines their gradients."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        fill_gradients = torchjd_pcgrad(list(self.q_net.parameters()), optimize_gramian_computation=True)
        means = []
        for _ in range(gradient_steps):
            losses = self.task_losses(self.sample(batch_size // TASKS))
            means.append(losses.mean().item())
            self.policy.optimizer.zero_grad()
            fill_gradients(losses)
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(means))

    def task_losses(self, batch: ReplayBufferSamples) -> Tensor:
        """The mean Huber loss of each task (T,) on a task-major batch. Their mean is the loss of `DQN.train`."""
        with torch.no_grad():
            best = self.q_net_target(batch.next_observations).max(dim=1, keepdim=True).values
            targets = batch.rewards + (1 - batch.dones) * self.gamma * best
        values = self.q_net(batch.observations).gather(1, batch.actions.long())
        return F.smooth_l1_loss(values, targets, reduction="none").view(TASKS, -1).mean(1)

    def sample(self, each: int) -> ReplayBufferSamples:
        """Draw `each` transitions of every task. The batch is task-major."""
        return batch_of_tasks(self.replay_buffer, TASKS, each)


ALGORITHM = Algorithm(
    ours=MultiTaskDQN,
    sb3=DQN,
    torchjd=TorchJDDQN,
    tasks=DEFAULT_TASKS,
    balancers=("balancer",),
    networks=("q_net",),
    alike={
        "gradient_steps": UPDATES,
        "tau": 0.02,
        "exploration_initial_eps": 0.05,
        "exploration_final_eps": 0.05,
        "max_grad_norm": 10.0,
    },
    # SB3 updates its target network at most once per vector step. Ours does so at every 4th update, just as often.
    of_ours={
        "exploration_diversity": 0.0,
        "target_update_interval": UPDATES,
        "double_q": False,
        "huber_delta": 1.0,
    },
    of_theirs={"target_update_interval": ENVIRONMENTS},
)
