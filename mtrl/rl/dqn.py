"""Multi-task DQN: one Q-network for all tasks, one replay per task, and a balancer that combines their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from mtrl.balancers import Balancer
from mtrl.files import one_line
from mtrl.rl.actions import own_actions_of
from mtrl.rl.algorithm import MultiTaskAlgorithm
from mtrl.rl.exploration import EpsilonGreedy
from mtrl.rl.policies import MultiTaskCnnPolicy, MultiTaskInputPolicy, MultiTaskQPolicy
from mtrl.rl.settings import DQNOptions, DQNSettings, ReplaySettings
from mtrl.rl.update import SharedUpdate
from mtrl.rl.wrappers import DISCRETE_ONLY


class MultiTaskDQN(MultiTaskAlgorithm):
    """Deep Q-learning on several tasks at once, with the per-task gradients combined by a balancer.

    A Stable-Baselines3 algorithm: `learn`, `predict`, `save`, `load`, callbacks, logger and `evaluate_policy` work as
    they do there. The differences from `stable_baselines3.DQN` are deliberate:

    * the columns of `env` belong to tasks, in task-major order (`mtrl.rl.make_task_vec_env`); each task has its own
      replay, and an update takes `batch_size` transitions of *every* task;
    * `train` computes one gradient per task in a single backward pass and lets `balancer` combine them;
    * double Q-learning (van Hasselt et al. 2016), Huber loss, and no gradient clipping by default;
    * epsilon-greedy exploration draws for each environment, from a generator of the agent's own;
    * `target_update_interval` counts updates (or finished episodes), not environment steps;
    * saved models hold no pickle.

    Args:
        policy: `"MlpPolicy"`, `"CnnPolicy"` for images, `"MultiInputPolicy"` for dictionaries, or a subclass of
            `MultiTaskQPolicy`.
        env: a vector environment with columns for each task, task after task. The task of a column is read
            from its attribute `task` (its `name`, if it has one). An environment without it counts as one task. Columns
            wrapped in `mtrl.rl.TaskOneHot` make the agent task-aware.
        balancer: a name from `mtrl.balancers.names()` or a `Balancer`. Default `"equal"`.
        balancer_kwargs: arguments of the balancer, if it is given by name.
        policy_kwargs: arguments of the policy, such as `net_arch`; see `MultiTaskQPolicy`.
        tensorboard_log: folder for TensorBoard files. Default None.
        verbose: 0 is silent, 1 prints logs.
        seed: the seed of everything random. Default None: fresh entropy.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        **settings: the fields of `DQNSettings`, which describes them with their defaults and limits.

    Attributes:
        settings: all settings, as a `DQNSettings`.
        task_names: names of the tasks, in order.
        balancer: the `Balancer` in use.
        exploration: what explores, with the present epsilons.
        update: what changes the weights; see `SharedUpdate`.

    Raises:
        ValueError: a setting is unknown, has the wrong type or is out of its limits, or the environment's columns are
            not as described.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MultiTaskQPolicy,
        "CnnPolicy": MultiTaskCnnPolicy,
        "MultiInputPolicy": MultiTaskInputPolicy,
    }
    settings_type: ClassVar[type[ReplaySettings]] = DQNSettings
    update_type: ClassVar[type[SharedUpdate]] = SharedUpdate
    progress: ClassVar[dict[str, type]] = {**MultiTaskAlgorithm.progress, "exploration_rates": np.ndarray}

    settings: DQNSettings
    policy: MultiTaskQPolicy
    update: SharedUpdate

    def __init__(
        self,
        policy: str | type[MultiTaskQPolicy],
        env: GymEnv | str | None,
        balancer: str | Balancer = "equal",
        balancer_kwargs: Mapping[str, Any] | None = None,
        *,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **settings: Unpack[DQNOptions],
    ) -> None:
        super().__init__(
            policy,
            env,
            balancer,
            balancer_kwargs,
            settings,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            supported_action_spaces=(spaces.Discrete,),
        )
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        actions = cast(spaces.Discrete, self.action_space)
        self._first_action = int(actions.start)  # the agent counts its actions from 0
        self.exploration = EpsilonGreedy(self.settings, self.column_counts, int(actions.n), self.exploration_generator)

    @classmethod
    def check_actions(cls, space: spaces.Space[Any]) -> None:
        """See `MultiTaskAlgorithm.check_actions`."""
        if not isinstance(space, spaces.Discrete):
            can = "; MultiTaskSAC acts in a bounded Box" if isinstance(space, spaces.Box) else ""
            raise ValueError(f"actions are in {one_line(space)}; {DISCRETE_ONLY}{can}")

    def make_update(self) -> SharedUpdate:
        """An `update_type` of this agent's networks, balancer and settings."""
        self.policy.own_actions = own_actions_of(self)
        held_out = None if self.guidance_buffer is None else self.sample_held_out
        update = self.update_type(self.policy, self.balancer, self.settings, self.guard, self.lr_schedule(1), held_out)
        self.policy.optimizer = update.optimizer
        return update

    @property
    def q_net(self) -> Any:
        """The online network."""
        return self.policy.q_net

    @property
    def q_net_target(self) -> Any:
        """The target network."""
        return self.policy.q_net_target

    # ----------------------------------------------------------------- the target network

    def _after_update(self) -> None:
        if self.settings.target_update_unit == "updates":
            self._update_target_after(self._n_updates)

    def _update_target_after(self, count: int) -> None:
        """Update the target network if it is due after `count` updates or episodes."""
        if count % self.settings.target_update_interval == 0:
            self.update.update_target(self.tau)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if dones is not None and self.settings.target_update_unit == "episodes":
            for finished in range(1, int(np.count_nonzero(dones)) + 1):
                self._update_target_after(self._episode_num + finished)

    # ----------------------------------------------------------------- acting

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[np.float32], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.int64], tuple[NDArray[np.float32], ...] | None]:
        """Actions for one observation or for several (N, ...): greedy, or epsilon-greedy if not `deterministic`.

        `state` and `episode_start` are for recurrent policies and are passed through.
        """
        self._warn_of_evaluate_policy(episode_start)
        actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        if deterministic:
            return actions, state
        counts = None
        if self.policy.own_actions is not None:
            rows = cast(torch.Tensor, self.policy.obs_to_tensor(observation)[0])
            counts = self.policy.own_actions.counts(rows).reshape(actions.shape)
        return self._first_action + self.exploration.explore(actions - self._first_action, counts), state

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.num_timesteps < learning_starts:
            actions = self.exploration.random((n_envs,), self._counts)
        else:
            # `predict` has checks and conversions for every kind of input, which cost more than the network.
            rows = torch.as_tensor(cast(NDArray[Any], self._last_obs), device=self.device)
            with torch.inference_mode():
                greedy = self.update.values(rows).argmax(1)
            actions = self.exploration.explore(greedy.numpy(force=True), self._counts)
        return actions + self._first_action if self._first_action else actions, actions

    @property
    def _counts(self) -> NDArray[np.int64] | None:
        """How many actions there are to choose from in each column; None if all columns have all of them."""
        if self.policy.own_actions is None:
            return None
        return np.repeat(self.actions_of_tasks, self.column_counts)

    def _on_step(self) -> None:
        self.exploration.schedule(self.column_counts, self._current_progress_remaining, self._episode_num)

    @property
    def exploration_rates(self) -> NDArray[np.float64]:
        """Present epsilon of each column, (T * K,)."""
        return self.exploration.rates

    @exploration_rates.setter
    def exploration_rates(self, rates: NDArray[np.float64]) -> None:
        if rates.ndim != 1 or rates.dtype != np.float64:
            raise ValueError("exploration_rates must be a list of float64")
        self.exploration.rates = rates

    @property
    def exploration_rate(self) -> float:
        """Present epsilon, the mean over columns."""
        return float(self.exploration_rates.mean())

    def dump_logs(self) -> None:
        """Record epsilon and the scales of rewards and values, and the rest as every agent does."""
        self.logger.record("rollout/exploration_rate", self.exploration_rate)
        for key, numbers in self.update.scales().items():
            for name, number in zip(self.task_names, numbers, strict=True):
                self.logger.record(f"train/{name}/{key}", number)
        super().dump_logs()
