"""What every agent with one replay per task shares with Stable-Baselines3: collecting, storing, logging."""

from __future__ import annotations

import inspect
import time
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces, safe_mean
from stable_baselines3.common.vec_env import VecEnv

from mtrl.balancers import Balancer, make_balancer
from mtrl.limits import check_choice, check_names, check_number
from mtrl.recorder import named
from mtrl.rl.actions import OwnActions, counts_of_places
from mtrl.rl.callbacks import check_callback
from mtrl.rl.columns import (
    Evening,
    action_counts,
    check_columns,
    check_kind,
    check_one_hots,
    check_places,
    column_counts,
    one_hots,
    task_names,
    with_monitor,
)
from mtrl.rl.n_step import NStepReturns, Step, Transitions
from mtrl.rl.nonfinite import FiniteGuard
from mtrl.rl.observations import ObservationRows, Observations
from mtrl.rl.policies import MultiTaskQPolicy
from mtrl.rl.replay import TaskReplayBuffer
from mtrl.rl.saving import SavedAlgorithm
from mtrl.rl.settings import MEMORY_ANGLE
from mtrl.rl.tables import widen_tables
from mtrl.rl.training_state import set_training_state, training_state
from mtrl.rl.update import Update
from mtrl.rl.wrappers import PaddedTask

CHANGEABLE = frozenset({"learning_rate", "learning_starts", "batch_size", "tau", "train_freq", "gradient_steps"})
"""The settings that are attributes in Stable-Baselines3 and are read whenever they are used."""


class MultiTaskAlgorithm(SavedAlgorithm):
    """A Stable-Baselines3 algorithm whose environment has columns of several tasks, with one replay per task.

    A subclass names the type of its settings, makes its `Update`, and implements `train`.

    Args:
        policy: the name of a policy, or a policy class. `MultiTaskDQN` describes this and the next three arguments.
        settings: values of fields of `settings_type`. The other fields keep their defaults.
        **sb3: further arguments of Stable-Baselines3's `OffPolicyAlgorithm`.

    Attributes:
        settings: all settings.
        task_names: names of the tasks, in order.
        actions_of_tasks: how many actions each task has, in order: fewer than the action space where it was padded.
        one_hot_size: number of tasks that the one-hot in the observations distinguishes; 0 without one.
        rows: how observations are laid out in the replay; `_last_obs` holds the last rows.
        balancer: the `Balancer` in use.
        balancer_name: the balancer's name; None if it was given as an object.
        guidance_buffer: transitions that are held out from training; None if the balancer wants no guidance.
        exploration_generator: source of all random numbers in exploration.
        update: what changes the weights.

    Raises:
        ValueError: a setting is unknown, has the wrong type or is out of its limits, or the environment's columns are
            not as described.
    """

    policy: MultiTaskQPolicy
    _fixed: frozenset[str] = frozenset()  # names of settings that can't be changed any more

    def __init__(
        self,
        policy: str | type[MultiTaskQPolicy],
        env: GymEnv | str | None,
        balancer: str | Balancer,
        balancer_kwargs: Mapping[str, Any] | None,
        settings: Mapping[str, Any],
        **sb3: Any,
    ) -> None:
        check_names("setting", settings, self._option_names())
        if isinstance(policy, str):
            check_choice("policy", policy, self.policy_aliases)
            policy = cast(type[MultiTaskQPolicy], self.policy_aliases[policy])
        check_kind(env := maybe_make_env(env, 0) if isinstance(env, str) else env)
        self.settings = self.settings_type(**settings)
        if sb3.get("seed") is not None:
            sb3["seed"] = check_number("seed", sb3["seed"], least=0, most=2**32 - 1, whole=True)
        of_sb3 = inspect.signature(OffPolicyAlgorithm).parameters
        shared = {field.name for field in fields(self.settings)} & of_sb3.keys()
        super().__init__(
            policy,
            env,  # type: ignore[arg-type] # None is allowed when a model is loaded
            **{name: getattr(self.settings, name) for name in shared},
            support_multi_env=True,
            sde_support=False,
            **sb3,
        )
        self.balancer_name = None if isinstance(balancer, Balancer) else balancer
        self.balancer_kwargs = dict(balancer_kwargs or {})
        if isinstance(balancer, Balancer):
            self.balancer = balancer
        self.task_names: tuple[str, ...] = ()
        self.actions_of_tasks: tuple[int, ...] = ()
        self.is_padded = False
        self.one_hot_size = 0
        self.one_hot_places: tuple[int, ...] = ()
        self.column_counts: tuple[int, ...] = ()
        if self.env is not None:
            check_columns(self.env)
            self.task_names = task_names(self.env)
            self.one_hot_size, self.one_hot_places = one_hots(self.env, self.task_names)
            self.column_counts = column_counts(self.env)
            self.actions_of_tasks = action_counts(self.env, self.task_names)
            self.is_padded = any(self.env.env_is_wrapped(PaddedTask))

    @classmethod
    def _option_names(cls) -> list[str]:
        """The names of all keyword arguments of the constructor."""
        arguments = inspect.signature(cls).parameters.values()
        explicit = [argument.name for argument in arguments if argument.kind is not argument.VAR_KEYWORD]
        return [*(field.name for field in fields(cls.settings_type)), *(name for name in explicit if name[0] != "_")]

    @property
    def variant(self) -> str:
        """`"aware"` if observations hold the task's one-hot, else `"blind"`."""
        return "aware" if self.one_hot_size else "blind"

    @property
    def q_net(self) -> Any:
        """The online network."""
        return self.policy.q_net

    @property
    def q_net_target(self) -> Any:
        """The target network."""
        return self.policy.q_net_target

    @property
    def elapsed_ns(self) -> int:
        """Nanoseconds since `learn` began, without the pauses of an interrupted run. The wall clock does not count."""
        return time.monotonic_ns() - self._begun_ns

    # ----------------------------------------------------------------- set-up

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        return with_monitor(wrapped) if monitor_wrapper else wrapped

    def _setup_model(self) -> None:
        self._check_sizes()
        self._setup_lr_schedule()
        self._convert_train_freq()
        self.set_random_seed(self.seed)
        exploration, replay, held_out = (int(x) for x in np.random.SeedSequence(self.seed).generate_state(3, np.uint64))
        self.exploration_generator = np.random.default_rng(exploration)
        self._held_out_generator = np.random.default_rng(held_out)
        policy_class = cast(type[MultiTaskQPolicy], self.policy_class)
        if (known := policy_class.network_arguments()) is not None:
            check_names("policy_kwargs", self.policy_kwargs, known)
        actions = cast(spaces.Discrete, self.action_space)
        self.policy = policy_class(
            self.observation_space, actions, self.lr_schedule, num_tasks=self.one_hot_size, **self.policy_kwargs
        ).to(self.device)
        self.rows: ObservationRows = self.policy.rows
        places = (self.actions_of_tasks, self.one_hot_places, self.one_hot_size, int(actions.n))
        if (counts := counts_of_places(*places)) is not None:
            self.policy.own_actions = OwnActions(counts, int(actions.n), self.rows, self.device)
        if self.balancer_name is not None:
            self.balancer = make_balancer(self.balancer_name, len(self.task_names), **self.balancer_kwargs)
        self.balancer.to(self.device)
        if self.settings.memory_angle is None:
            self.settings = replace(self.settings, memory_angle=0.0 if self.balancer.has_memory else MEMORY_ANGLE)
        share = self.settings.guidance_share if self.balancer.wants_guidance else 0.0
        self.guidance_buffer = self._make_replay(held_out >> 1, share) if share else None
        self.replay_buffer = self._make_replay(replay >> 1, 1 - share)
        self._n_step_returns = NStepReturns(self.settings.n_step, self.gamma)
        self.guard = FiniteGuard(self.settings.on_nonfinite, self.task_names)
        self._episode_stats = [deque[tuple[float, int]](maxlen=self._stats_window_size) for _ in self.task_names]
        self._loss_sum = torch.zeros(len(self.task_names), device=self.device)
        self._loss_count = 0
        self._updates_begin = self.learning_starts
        self._begun_ns = time.monotonic_ns()
        self.update = self.make_update()
        self._fixed = frozenset(field.name for field in fields(self.settings)) - CHANGEABLE

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but none of the settings that have gone into the agent's parts.

        Raises:
            AttributeError: a change of the setting would have no effect.
        """
        if name in self._fixed:
            raise AttributeError(f"{name} can't be changed any more; save the model and load it with {name}={value!r}")
        super().__setattr__(name, value)

    def make_update(self) -> Update:
        """Make the update, when everything that it needs has been made."""
        raise NotImplementedError

    def _check_sizes(self) -> None:
        capacity = self.buffer_size // len(self.task_names)
        if self.batch_size > capacity:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be between 1 and the {capacity} transitions "
                f"that the replay keeps per task (buffer_size {self.buffer_size})"
            )

    def _make_replay(self, seed: int, share: float) -> TaskReplayBuffer:
        """A replay for `share` of all transitions, so that several replays reach equally far back in time."""
        num_tasks = len(self.task_names)
        capacity = max(round(self.buffer_size // num_tasks * share), 1)
        actions = int(cast(spaces.Discrete, self.action_space).n)
        rows = self.rows
        return TaskReplayBuffer(capacity, num_tasks, rows.numbers, seed, self.device, actions, rows.bytes)

    def _setup_lr_schedule(self) -> None:
        rate, decay = self.learning_rate, self.settings.learning_rate_decay
        if callable(rate) or not decay:
            super()._setup_lr_schedule()
        else:
            self.lr_schedule = lambda remaining: rate * min(1.0, max(remaining, 0.0) / decay)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Learn in `env` from now on; it must have the tasks and spaces of the model.

        Raises:
            ValueError: `env` has other tasks or spaces.
        """
        check_kind(env)
        wrapped = self._wrap_env(env, self.verbose)
        check_columns(wrapped)
        names = task_names(wrapped)
        if names != self.task_names:
            raise ValueError(
                f"the environment's tasks are {', '.join(names)}; the model's are {', '.join(self.task_names)}; "
                "to play in fewer of them or in another order, load the model without env, and use evaluate_tasks"
            )
        check_for_correct_spaces(wrapped, self.observation_space, self.action_space)
        if (counts := action_counts(wrapped, names)) != self.actions_of_tasks:
            raise ValueError(f"the environment's tasks have {counts} actions; the model's have {self.actions_of_tasks}")
        check_places(self, wrapped, names)
        self.n_envs = wrapped.num_envs
        self.column_counts = column_counts(wrapped)
        super().set_env(wrapped, force_reset)

    # ----------------------------------------------------------------- collecting

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        prepared = super()._setup_learn(*args, **kwargs)
        check_callback(prepared[1], self.balancer_name is not None)
        self._begun_ns = time.monotonic_ns()
        assert self.env is not None
        if self._last_obs is not before:  # the environments have been reset
            check_one_hots(self.env, cast(Observations, self._last_obs))
            self._last_obs = self.rows.of(cast(Observations, self._last_obs))
            self._n_step_returns.clear()
            self.update.forget_unfinished()
        self.update.check_unchanged()
        self._task_of_column = np.repeat(np.arange(len(self.task_names)), self.column_counts)
        self._evening = Evening(self.column_counts)
        self.update.task_of_column = self._task_of_column
        if any(isinstance(o, CSVOutputFormat) for o in self.logger.output_formats) and "," in "".join(self.task_names):
            warnings.warn("the names of tasks hold commas, which progress.csv does not quote", stacklevel=2)
        # A model that goes on without its replay collects as much as a new one; so does one whose steps begin anew.
        if len(self.replay_buffer) == 0 or self.num_timesteps == 0:
            self._updates_begin = self.num_timesteps + self.learning_starts
        return prepared

    def _store_transition(  # type: ignore[override] # narrower: this agent's replay, arrays only
        self,
        replay_buffer: TaskReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: Observations,
        reward: NDArray[np.float32],
        dones: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        rows, numbers = self.rows.of(new_obs), self.rows.numbers_in
        terminals, next_rows = dones, rows
        if dones.any():
            # The vector environment has reset these columns. Their infos hold the observation after the action.
            next_rows, terminals = rows.copy(), dones.copy()
            for column in np.flatnonzero(dones):
                next_rows[column] = self.rows.of_one(infos[column]["terminal_observation"])
                terminals[column] = not infos[column].get("TimeLimit.truncated", False)
        observations = cast(NDArray[Any], self._last_obs)
        self._last_obs = rows
        is_finite = self.guard.step_is_finite(
            numbers(observations), numbers(next_rows), reward, self.num_timesteps, self._task_of_column
        )
        self.update.observe(reward, dones, terminals)
        if not is_finite:
            self._n_step_returns.clear()  # no transition may reach over the gap
            return
        if self.guidance_buffer is not None and (
            len(self.guidance_buffer) == 0 or self._held_out_generator.random() < self.settings.guidance_share
        ):
            replay_buffer = self.guidance_buffer
        transitions = self._n_step_returns.add(Step(observations, next_rows, buffer_action, reward, dones, terminals))
        if transitions is not None:
            if self._evening.is_needed:
                columns = self._evening.columns(self.num_timesteps // self.n_envs)
                transitions = Transitions(*(part[columns] for part in transitions))  # type: ignore[arg-type]
            replay_buffer.add(*transitions)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if dones is None or not dones.any():
            return
        for column in np.flatnonzero(dones):
            episode = infos[column].get("episode")
            if episode is not None:
                self._episode_stats[self._task_of_column[column]].append((episode["r"], episode["l"]))
        self.balancer.record_returns(torch.tensor(self.recent_returns, dtype=torch.float64))

    # ----------------------------------------------------------------- logging

    @property
    def recent_returns(self) -> list[float]:
        """Mean return of the last finished episodes of each task (`stats_window_size`); NaN before the first."""
        return [safe_mean([r for r, _ in episodes]) for episodes in self._episode_stats]

    @property
    def mean_losses(self) -> list[float]:
        """Mean loss of each task since the last logs were written; NaN if there was no update."""
        return (self._loss_sum / self._loss_count).tolist()

    @property
    def diagnostics(self) -> dict[str, float]:
        """The balancer's diagnostics at the last update, by their names in the logs (`balancer/<task>/weight`, ...)."""
        return dict(named({**self.update.conflict, **self.update.diagnostics}, self.task_names))

    def dump_logs(self) -> None:
        """Record per-task returns, losses and the balancer's diagnostics, then write one line of logs."""
        record = self.logger.record
        record("env_step", self.num_timesteps, exclude="tensorboard")
        record("train/updates", self._n_updates, exclude="tensorboard")
        elapsed = self.elapsed_ns
        # Stable-Baselines3 reads the wall clock, which may be set back or forward while the agent learns.
        self.start_time = time.time_ns() - elapsed
        record("time/steps_per_s", (self.num_timesteps - self._num_timesteps_at_start) / max(elapsed / 1e9, 1e-9))
        for task, name in enumerate(self.task_names):
            if self._episode_stats[task]:
                record(f"train/{name}/return", self.recent_returns[task])
                record(f"train/{name}/length", safe_mean([length for _, length in self._episode_stats[task]]))
            if self._loss_count:
                record(f"train/{name}/loss", self.mean_losses[task])
        for key, value in self.diagnostics.items():
            record(key, value)
        for key, count in self.guard.skipped.items():
            record(key, count)
        self._loss_sum.zero_()
        self._loss_count = 0
        widen_tables(self.logger)
        super().dump_logs()

    # ----------------------------------------------------------------- training state

    def training_state(self) -> dict[str, Any]:
        """All that the rest of a training depends on, between two rollouts, except for the environments and the logger.

        Unlike a saved model, this holds the replay, every generator of the agent and the unfinished statistics.
        """
        return training_state(self)

    def set_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned, in an agent made with the same arguments whose `learn` has begun.

        Call this from a callback's `_on_training_start`, because it replaces what `learn` sets up.

        Raises:
            ValueError: the state is that of another agent, or malformed.
        """
        set_training_state(self, state)

    @property
    def exploration_generator_state(self) -> dict[str, Any]:
        """The place of the generator that explores in its sequence."""
        return dict(self.exploration_generator.bit_generator.state)
