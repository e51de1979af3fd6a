"""What every agent with one replay per task shares with Stable-Baselines3: set-up, collecting, storing, updating."""

from __future__ import annotations

import inspect
import sys
import time
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Self, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from mtrl.balancers import Balancer, make_balancer
from mtrl.limits import check_choice, check_names, check_number
from mtrl.rl.actions import number_of_actions
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
from mtrl.rl.evaluation import warn_of_evaluate_policy
from mtrl.rl.logs import LoggedAlgorithm
from mtrl.rl.n_step import NStepReturns, Step, Transitions
from mtrl.rl.nonfinite import FiniteGuard
from mtrl.rl.observations import ObservationRows, Observations
from mtrl.rl.policies import MultiTaskPolicy
from mtrl.rl.replay import TaskBatch, TaskReplayBuffer
from mtrl.rl.settings import MEMORY_ANGLE
from mtrl.rl.subnormal import subnormal_numbers_flushed
from mtrl.rl.update import Update
from mtrl.rl.wrappers import PaddedTask

CHANGEABLE = frozenset({"learning_rate", "learning_starts", "batch_size", "tau", "train_freq", "gradient_steps"})
"""The settings that are attributes in Stable-Baselines3 and are read whenever they are used."""


class MultiTaskAlgorithm(LoggedAlgorithm):
    """A Stable-Baselines3 algorithm whose environment has columns of several tasks, with one replay per task.

    A subclass names the type of its settings, makes its `Update`, and acts.

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
        is_learning: whether `learn` is running.

    Raises:
        ValueError: a setting is unknown, has the wrong type or is out of its limits, or the environment's columns are
            not as described.
    """

    policy: MultiTaskPolicy
    is_learning = False
    _knows_of_evaluate_policy = False  # whether a user of it has been warned
    _fixed: frozenset[str] = frozenset()  # names of settings that can't be changed any more

    def __init__(
        self,
        policy: str | type[MultiTaskPolicy],
        env: GymEnv | str | None,
        balancer: str | Balancer,
        balancer_kwargs: Mapping[str, Any] | None,
        settings: Mapping[str, Any],
        **sb3: Any,
    ) -> None:
        check_names("setting", settings, self._option_names())
        if isinstance(policy, str):
            check_choice("policy", policy, self.policy_aliases)
            policy = cast(type[MultiTaskPolicy], self.policy_aliases[policy])
        check_kind(env := maybe_make_env(env, 0) if isinstance(env, str) else env)
        if env is not None:
            self.check_actions(env.action_space)
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
        self.check_actions(self.action_space)
        policy_class: Any = self.policy_class
        if (known := policy_class.network_arguments()) is not None:
            check_names("policy_kwargs", self.policy_kwargs, known)
        self.policy = policy_class(
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            num_tasks=self.one_hot_size,
            **self.policy_kwargs,
        ).to(self.device)
        self.rows: ObservationRows = self.policy.rows
        self._make_balancers()
        if self.settings.memory_angle is None:
            has_memory = any(balancer.has_memory for balancer in self.balancers)
            self.settings = replace(self.settings, memory_angle=0.0 if has_memory else MEMORY_ANGLE)
        share = self.settings.guidance_share if any(one.wants_guidance for one in self.balancers) else 0.0
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

    def _make_balancers(self) -> None:
        """Make the balancers that were given by name, when the tasks are known."""
        if self.balancer_name is not None:
            self.balancer = make_balancer(self.balancer_name, len(self.task_names), **self.balancer_kwargs)
        self.balancer.to(self.device)

    @classmethod
    def check_actions(cls, space: spaces.Space[Any]) -> None:
        """Check that the algorithm can act in an action space.

        Raises:
            ValueError: it cannot; the message names the algorithm that can.
        """
        raise NotImplementedError

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
        rows, actions = self.rows, number_of_actions(self.action_space)
        is_discrete = isinstance(self.action_space, spaces.Discrete)
        of_actions = (actions, rows.bytes, None) if is_discrete else (None, rows.bytes, actions)
        return TaskReplayBuffer(capacity, num_tasks, rows.numbers, seed, self.device, *of_actions)

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
        self.check_actions(env.action_space)
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
        check_callback(prepared[1], self.is_described)
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
        reward = reward.astype(np.float32, copy=False)  # SubprocVecEnv gives float64, whose sums over steps differ
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
                transitions = Transitions(*(part[columns] for part in transitions))
            replay_buffer.add(*transitions)

    # ----------------------------------------------------------------- learning

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 10,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As in Stable-Baselines3.

        `total_timesteps` counts the steps of all columns; logs are written every `log_interval` finished episodes. The
        default of `tb_log_name` is the name of the class.
        """
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        arguments = (total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)
        self.is_learning = True
        try:
            with subnormal_numbers_flushed():
                return super().learn(*arguments)
        finally:
            self.is_learning = False

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Make `gradient_steps` updates on `batch_size` transitions of each task."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.update.optimizers)
        if len(self.replay_buffer) == 0 or self.num_timesteps <= self._updates_begin > self.learning_starts:
            return  # the first transition is not complete, or was held out; or too few have been collected again
        if self.guidance_buffer is not None:
            if len(self.guidance_buffer) == 0:
                return
            self.update.guide()
        for batch in self.replay_buffer.sample_several(gradient_steps, batch_size) if gradient_steps else ():
            measure_conflict = self._n_updates % self.settings.conflict_interval == 0
            try:
                losses = self.update(batch, measure_conflict)
            except FloatingPointError as error:
                self.guard.update_failed(error, self._n_updates + 1, self.num_timesteps)
                continue
            self._loss_sum += losses
            self._loss_count += 1
            self._n_updates += 1
            self._after_update()

    def _after_update(self) -> None:
        """Called after each update, when it has been counted."""

    def sample_held_out(self) -> TaskBatch:
        """A batch of transitions that are held out from training."""
        assert self.guidance_buffer is not None
        return self.guidance_buffer.sample(self.batch_size)

    def _warn_of_evaluate_policy(self, episode_start: NDArray[np.bool_] | None) -> None:
        """Warn once if `evaluate_policy`, called two functions above, plays columns of several tasks."""
        if episode_start is not None and not self._knows_of_evaluate_policy and np.all(episode_start):
            self._knows_of_evaluate_policy = warn_of_evaluate_policy(sys._getframe(2))
