"""The training runs that `python -m benchmarks.training` times in turns, and what an algorithm gives to make them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from agents import MultiTaskAlgorithm
from benchmarks.common import progress_bar
from envs import make_task_vec_env

TASKS, COLUMNS, BATCH = 3, 4, 64
ENVIRONMENTS = TASKS * COLUMNS
WARM_UP = 50 * ENVIRONMENTS  # steps
HIDDEN = [256, 128]
ALIKE: dict[str, Any] = {
    "learning_rate": 5e-4,
    "buffer_size": 160_000,
    "learning_starts": 0,
    "train_freq": 1,
    "device": "cpu",
}
"""The settings of every agent that is compared, of whatever algorithm."""


class Case:
    """A training run that is advanced by some steps at a time. Its clocks run only during these steps.

    Args:
        agent: the agent that learns.
        networks: the attributes of its policy that are the networks that it learns.

    Attributes:
        agent: the agent that learns.
        networks: the networks that it learns, by the attribute of its policy.
        seconds: the seconds that its steps have taken since the clocks started.
    """

    def __init__(self, agent: OffPolicyAlgorithm, networks: Sequence[str] = ("q_net",)) -> None:
        self.networks: dict[str, nn.Module] = {name: getattr(agent.policy, name) for name in networks}
        agent.set_logger(Logger(None, []))  # otherwise `learn` creates a folder at every call
        self.agent = agent
        self._clock = CollectionClock()
        self.start_clocks()

    @property
    def steps(self) -> int:
        """The number of environment steps so far, over all columns."""
        return self.agent.num_timesteps

    @property
    def collecting(self) -> float:
        """The part of `seconds` outside `train`."""
        return self._clock.seconds

    @property
    def parameters(self) -> int:
        """The number of parameters of the networks that the agent learns."""
        return sum(part.numel() for network in self.networks.values() for part in network.parameters())

    @property
    def updates(self) -> int:
        """The number of gradient steps so far."""
        return self.agent._n_updates

    @property
    def updates_per_step(self) -> float:
        """Gradient steps per environment step since the clocks started."""
        steps, updates = self._start
        return (self.updates - updates) / (self.steps - steps)

    def start_clocks(self) -> None:
        """Set all clocks to 0."""
        self.seconds = self._clock.seconds = 0.0
        self._start = self.steps, self.updates

    def advance(self, steps: int) -> float:
        """Learn for `steps` more environment steps, and return the seconds that they took."""
        torch.set_flush_denormal(False)  # the default of a process; `learn` of our agents turns it on
        start = time.perf_counter()
        self.agent.learn(steps, callback=self._clock, log_interval=10, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return seconds


class CollectionClock(BaseCallback):
    """Adds up the time between the starts and the ends of rollouts. The rest of `learn` is `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._start = 0.0

    def _on_rollout_start(self) -> None:
        self._start = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.seconds += time.perf_counter() - self._start

    def _on_step(self) -> bool:
        return True


@dataclass(frozen=True)
class Algorithm:
    """What is compared of an algorithm, and how.

    Args:
        ours: our agent.
        sb3: the agent of Stable-Baselines3.
        torchjd: the same with TorchJD's PCGrad.
        tasks: the names of the tasks.
        balancers: the arguments of our agent that are names of balancers.
        networks: the attributes of a policy that are the networks that an agent learns.
        alike: settings of all compared agents, besides `ALIKE`. Among them are the updates per vector step,
            `gradient_steps`.
        of_ours: further settings of our agent that make its work equal.
        of_theirs: further settings of the other agents.
    """

    ours: type[MultiTaskAlgorithm]
    sb3: type[OffPolicyAlgorithm]
    torchjd: type[OffPolicyAlgorithm]
    tasks: Sequence[str]
    balancers: Sequence[str]
    networks: Sequence[str]
    alike: Mapping[str, Any]
    of_ours: Mapping[str, Any]
    of_theirs: Mapping[str, Any]

    @property
    def sb3_name(self) -> str:
        """The name of the case of Stable-Baselines3."""
        return f"SB3 {self.sb3.__name__}"

    @property
    def torchjd_name(self) -> str:
        """The name of the case of Stable-Baselines3 with TorchJD."""
        return f"{self.sb3_name} + TorchJD PCGrad"

    @property
    def updates(self) -> int:
        """The updates per vector step of every compared case."""
        return int(self.alike["gradient_steps"])

    def case_of_ours(self, balancer: str, seed: int) -> Case:
        """Our agent with this balancer, doing the same work as the agents of `case_of_theirs`."""
        settings = {
            "batch_size": BATCH,
            "learning_rate_decay": 0.0,
            "n_step": 1,
            "memory_angle": 0.0,
            "policy_kwargs": {"net_arch": HIDDEN, "layer_norm": False},
            **dict.fromkeys(self.balancers, balancer),
        }
        return self._case(self.ours, settings | dict(self.of_ours), seed)

    def case_of_theirs(self, kind: type[OffPolicyAlgorithm], seed: int) -> Case:
        """The agent `kind`, which is `sb3` or `torchjd`, on one batch of all tasks that is as large as ours."""
        settings = {"batch_size": TASKS * BATCH, "policy_kwargs": {"net_arch": HIDDEN}}
        return self._case(kind, settings | dict(self.of_theirs), seed)

    def case_with_defaults(self, seed: int) -> Case:
        """Our agent with its defaults, except that updates begin with the first step."""
        env = make_task_vec_env(self.tasks, COLUMNS, seed)
        kind: Any = self.ours
        return Case(kind("MlpPolicy", env, learning_starts=0, seed=seed, device="cpu"), self.networks)

    def _case(self, kind: Any, settings: Mapping[str, Any], seed: int) -> Case:
        env = make_task_vec_env(self.tasks, COLUMNS, seed, variant="blind")
        return Case(kind("MlpPolicy", env, seed=seed, **ALIKE, **self.alike, **settings), self.networks)


def batch_of_tasks(replay: ReplayBuffer, tasks: int, each: int) -> ReplayBufferSamples:
    """Draw `each` transitions of every task from the task's columns, which are neighbours. The batch is task-major."""
    columns_of_task = replay.n_envs // tasks
    rows = np.random.randint(replay.size(), size=tasks * each)
    columns = np.repeat(np.arange(tasks) * columns_of_task, each) + np.random.randint(
        columns_of_task, size=tasks * each
    )
    ended = replay.dones[rows, columns] * (1 - replay.timeouts[rows, columns])  # a time limit is not an end
    return ReplayBufferSamples(
        observations=replay.to_torch(replay.observations[rows, columns]),
        actions=replay.to_torch(replay.actions[rows, columns]),
        next_observations=replay.to_torch(replay.next_observations[rows, columns]),
        dones=replay.to_torch(ended.reshape(-1, 1)),
        rewards=replay.to_torch(replay.rewards[rows, columns].reshape(-1, 1)),
    )


def take_turns(cases: dict[str, Case], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Measure for about `seconds`, after a warm-up: for each case, the seconds per environment step in each round."""
    per_step = sum(case.advance(WARM_UP) for case in cases.values()) / WARM_UP
    for case in cases.values():
        case.start_clocks()
    vector_steps = max(1, round(seconds / rounds / per_step / ENVIRONMENTS))
    steps = vector_steps * ENVIRONMENTS
    figures: dict[str, list[float]] = {name: [] for name in cases}
    with progress_bar() as progress:
        bar = progress.add_task(f"{rounds} rounds of {steps:,} steps", total=rounds * len(cases))
        for _ in range(rounds):
            for name, case in cases.items():
                figures[name].append(case.advance(steps) / steps)
                progress.advance(bar)
    return figures
