"""Multi-task DQN: one Q-network for all tasks, one replay per task, one balancer in between."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast, get_args

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TrainFreq
from stable_baselines3.common.utils import get_device, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from mtrl import checkpoint
from mtrl.balancers import AIM, Balancer, make_balancer
from mtrl.conflict import conflict_metrics
from mtrl.files import one_line
from mtrl.gradients import (
    Chain,
    ChainEngine,
    NonFiniteGradientError,
    ParameterLayout,
    TaskGradients,
    TaskMajorEngine,
    inference,
)
from mtrl.guidance import LookaheadGuidance
from mtrl.limits import LARGEST_REPLAY, at_most, check_integer
from mtrl.recorder import named
from mtrl.rl.n_step import NStepReturns, Step
from mtrl.rl.networks import SharedQNetwork
from mtrl.rl.nonfinite import FiniteGuard, OnNonFinite
from mtrl.rl.optimizer import FlatAdam
from mtrl.rl.policies import MultiTaskQPolicy
from mtrl.rl.replay import TaskBatch, TaskReplayBuffer
from mtrl.rl.td import TDError, TDLoss
from mtrl.rl.vec_env import TaskOneHot

TargetUnit = Literal["updates", "episodes"]

MOST_TASKS = 1_000  # in a file, and actions


class MultiTaskDQN(OffPolicyAlgorithm):
    """Deep Q-learning on several tasks at once, with the per-task gradients combined by a balancer.

    A Stable-Baselines3 algorithm: `learn`, `predict`, `save`, `load`, callbacks, logger and `evaluate_policy` work as
    they do there. What differs from `stable_baselines3.DQN`, on purpose:

    * the columns of `env` belong to tasks, in task-major order (`mtrl.rl.make_task_vec_env`); each task has its own
      replay, and an update takes `batch_size` transitions of *every* task;
    * `train` computes one gradient per task in a single backward pass and lets `balancer` combine them;
    * double Q-learning (van Hasselt et al. 2016), Huber loss, no gradient clipping by default;
    * epsilon-greedy draws per environment, not one coin for the whole batch, from a generator of the agent's own;
    * `target_update_interval` counts updates (or finished episodes), not environment steps;
    * saved models hold no pickle.

    Args:
        policy: `"MlpPolicy"` or a subclass of `MultiTaskQPolicy`.
        env: a vector environment with equally many columns per task, task after task. A column's task is read from
            its attribute `task` (its `name`, if it has one). An environment without it counts as one task. Columns
            wrapped in `mtrl.rl.TaskOneHot` make the agent task-aware.
        balancer: a name from `mtrl.balancers.names()` or a `Balancer`. Default `"equal"`.
        balancer_kwargs: arguments of the balancer, where it is given by name.
        learning_rate: of Adam; a number or a function of the remaining progress (1 to 0). Default 5e-4.
        learning_rate_decay: share of training, at its end, over which a learning rate given as a number falls
            linearly to 0; 0 keeps it constant. The last weights count, and without decay they swing. Default 0.25.
        buffer_size: transitions kept over all tasks, at most 100,000,000, shared out equally. Default 480,000.
        learning_starts: environment steps of random play before the first update. Default 6,000.
        batch_size: transitions per task and update. Default 64.
        tau: share of the online network that goes into the target network at each target update; 1 is a copy. Default
            0.005.
        gamma: discount. Default 0.99.
        n_step: rewards in a transition before the bootstrapped value, at most 1,000. Default 3.
        train_freq: vector steps between training phases. Default 1.
        gradient_steps: updates per training phase, at most 10,000; -1 for as many as environment steps. Default 2.
        target_update_interval: updates (or episodes, see below) between target updates. Default 1.
        target_update_unit: what the interval counts, `"updates"` or finished `"episodes"`. Default `"updates"`.
        exploration_fraction: share of training over which epsilon falls linearly. Default 0.1.
        exploration_initial_eps: first epsilon. Default 1.
        exploration_final_eps: last epsilon of a task's first column. Default 0.1.
        exploration_diversity: how much more greedily the others act: the last epsilon of column i of K is
            exploration_final_eps ** (1 + exploration_diversity * i / (K - 1)), as in Ape-X (Horgan et al. 2018,
            https://arxiv.org/abs/1803.00933); a lone column takes the middle. Some keep exploring while others show
            what a greedy policy earns. 0 gives all the same. Default 2.
        exploration_decay: if given, epsilon is multiplied by it at the end of each episode instead of falling
            linearly. Default None.
        double_q: the online network chooses the next action, the target network values it. Default True.
        td_loss: `"huber"` or `"mse"`, averaged over a task's batch. Default `"huber"`.
        huber_delta: error up to which the Huber loss is quadratic, in units of returns. Default 10.
        max_grad_norm: if given, the combined gradient is scaled down to this norm. Default None.
        guidance_share: share of each task's transitions that is held out as AIM's guidance set and never trained on;
            without effect for balancers that need no guidance. In (0, 1). Default 0.1.
        conflict_interval: updates between measurements of how much the task gradients conflict. Default 250.
        on_nonfinite: what to do where an observation, reward, loss, gradient or weight is NaN or infinite: `"raise"` a
            `NonFiniteError` that names it, or `"skip"` that step or update and count it in the logs. Default `"raise"`.
        stats_window_size: finished episodes per task that logged returns average over, at most 1,000,000. Default 20.
        tensorboard_log: folder for TensorBoard files. Default None.
        policy_kwargs: arguments of the policy (`net_arch`, `embedding_dim`, `layer_norm`).
        verbose: 0 silent, 1 prints logs.
        seed: of everything random. Default None: fresh entropy.
        device: `"auto"`, `"cpu"` or `"cuda"`.

    Attributes:
        task_names: names of the tasks, in order.
        balancer: the `Balancer` in use.

    Raises:
        ValueError: an argument is out of range, or the environment's columns are not as described.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MultiTaskQPolicy}
    policy: MultiTaskQPolicy
    replay_buffer: TaskReplayBuffer  # type: ignore[assignment] # not SB3's: it has a task axis

    def __init__(
        self,
        policy: str | type[MultiTaskQPolicy],
        env: GymEnv | str | None,
        balancer: str | Balancer = "equal",
        balancer_kwargs: Mapping[str, Any] | None = None,
        learning_rate: float | Schedule = 5e-4,
        learning_rate_decay: float = 0.25,
        buffer_size: int = 480_000,
        learning_starts: int = 6_000,
        batch_size: int = 64,
        tau: float = 0.005,
        gamma: float = 0.99,
        n_step: int = 3,
        train_freq: int = 1,
        gradient_steps: int = 2,
        target_update_interval: int = 1,
        target_update_unit: TargetUnit = "updates",
        exploration_fraction: float = 0.1,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.1,
        exploration_diversity: float = 2.0,
        exploration_decay: float | None = None,
        double_q: bool = True,
        td_loss: TDLoss = "huber",
        huber_delta: float = 10.0,
        max_grad_norm: float | None = None,
        guidance_share: float = 0.1,
        conflict_interval: int = 250,
        on_nonfinite: OnNonFinite = "raise",
        stats_window_size: int = 20,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,  # type: ignore[arg-type] # None is allowed when a model is loaded
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Discrete,),
        )
        self.learning_rate_decay = learning_rate_decay
        self.target_update_interval = target_update_interval
        self.target_update_unit = target_update_unit
        self.exploration_fraction = exploration_fraction
        self.exploration_initial_eps = exploration_initial_eps
        self.exploration_final_eps = exploration_final_eps
        self.exploration_decay = exploration_decay
        self.exploration_diversity = exploration_diversity
        self.exploration_rates = np.full(max(self.n_envs if env is not None else 1, 1), exploration_initial_eps)
        self.n_step = n_step
        self.double_q = double_q
        self.td_loss = td_loss
        self.huber_delta = huber_delta
        self.max_grad_norm = max_grad_norm
        self.guidance_share = guidance_share
        self.conflict_interval = conflict_interval
        self.on_nonfinite = on_nonfinite
        self._balancer_spec = balancer
        self.balancer_kwargs = dict(balancer_kwargs or {})
        self.task_names: tuple[str, ...] = ()
        self.one_hot_size = 0
        if self.env is not None:
            self.task_names = _task_names(self.env)
            self.one_hot_size = _one_hot_size(self.env)
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------------------------------------ set-up

    def _setup_model(self) -> None:
        self._check_arguments()
        self._setup_lr_schedule()
        self._convert_train_freq()
        self.set_random_seed(self.seed)
        exploration, replay, held_out = (int(x) for x in np.random.SeedSequence(self.seed).generate_state(3, np.uint64))
        self._exploration_rng = np.random.default_rng(exploration)
        num_tasks = len(self.task_names)
        assert isinstance(self.observation_space, spaces.Box)
        assert isinstance(self.action_space, spaces.Discrete)
        self.policy = cast(type[MultiTaskQPolicy], self.policy_class)(
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            num_tasks=self.one_hot_size,
            **self.policy_kwargs,
        ).to(self.device)
        if isinstance(self._balancer_spec, Balancer):
            self.balancer = self._balancer_spec
        else:
            self.balancer = make_balancer(self._balancer_spec, num_tasks, **self.balancer_kwargs)
        self.balancer.to(self.device)
        self.guidance_buffer: TaskReplayBuffer | None = None
        share = 0.0
        if isinstance(self.balancer, AIM) and self.balancer.guidance == "lookahead":
            share = self.guidance_share
            self.guidance_buffer = self._make_replay(held_out >> 1, share)
            self._held_out_rng = np.random.default_rng(held_out)
        self.replay_buffer = self._make_replay(replay >> 1, 1 - share)
        self._n_step_returns = NStepReturns(self.n_step, self.gamma)
        self._guard = FiniteGuard(self.on_nonfinite, self.task_names)
        self._td_error = TDError(num_tasks, self.td_loss, self.huber_delta)

        # One vector holds all weights and one their gradient: the optimizer takes one fused step over both, and the
        # target network follows in one operation.
        vector = ParameterLayout(self.policy.q_net.parameters()).flatten_()
        self._weights = vector.detach()  # the same memory
        self._target_weights = ParameterLayout(self.policy.q_net_target.parameters()).flatten_().detach()
        self._optimizer = self._make_optimizer(vector)
        self.policy.optimizer = self._optimizer
        self._online_values: Callable[[Tensor], Tensor] = self.policy.q_net
        self._target_values: Callable[[Tensor], Tensor] = self.policy.q_net_target
        self._chain: ChainEngine | None = None
        self._make_engine()
        self._episode_stats = [deque[tuple[float, int]](maxlen=self._stats_window_size) for _ in self.task_names]
        self._loss_sum = torch.zeros(num_tasks, device=self.device)
        self._loss_count = 0
        self._conflict: dict[str, Tensor] = {}  # metrics, when last measured
        self._diagnostics: Mapping[str, Tensor] = {}  # the balancer's, of the last update

    def _make_replay(self, seed: int, share: float) -> TaskReplayBuffer:
        """A replay for `share` of all transitions, so that several reach equally far back."""
        assert isinstance(self.observation_space, spaces.Box)
        num_tasks = len(self.task_names)
        capacity = max(round(self.buffer_size // num_tasks * share), 1)
        return TaskReplayBuffer(capacity, num_tasks, self.observation_space.shape[0], seed, self.device)

    def _make_optimizer(self, vector: nn.Parameter) -> FlatAdam:
        return FlatAdam(vector, self.lr_schedule(1))

    def _make_engine(self) -> None:
        network, num_tasks = self.policy.q_net, len(self.task_names)
        self._engine = TaskMajorEngine(network, num_tasks, network.last_shared_layer)
        self._guidance: Callable[[Tensor], Tensor] = LookaheadGuidance(self._guidance_loss, network.parameters())
        if type(network) is SharedQNetwork:  # without autograd: the same numbers in about half the time
            self._chain = ChainEngine(network.layers, num_tasks, network.last_shared_layer)
            self._guidance_chain = ChainEngine(network.layers, 1, group=None)
            self._guidance = self._lookahead_gradient
            self._online_values = self._chain.chain.forward
            self._target_values = Chain(self.policy.q_net_target.layers).forward

    def _setup_lr_schedule(self) -> None:
        if callable(self.learning_rate) or not self.learning_rate_decay:
            super()._setup_lr_schedule()
            return
        rate, decay = self.learning_rate, self.learning_rate_decay
        self.lr_schedule = lambda remaining: rate * min(1.0, max(remaining, 0.0) / decay)

    def _check_arguments(self) -> None:
        if not isinstance(self.observation_space, spaces.Box) or len(self.observation_space.shape) != 1:
            raise ValueError(f"observations must be a one-dimensional Box, not {self.observation_space}")
        for name, whole, least, most in (
            ("buffer_size", self.buffer_size, 1, LARGEST_REPLAY),
            ("batch_size", self.batch_size, 1, LARGEST_REPLAY),
            ("learning_starts", self.learning_starts, 0, np.inf),
            ("n_step", self.n_step, 1, 1_000),
            ("gradient_steps", self.gradient_steps, -1, 10**4),
            ("target_update_interval", self.target_update_interval, 1, np.inf),
            ("conflict_interval", self.conflict_interval, 1, np.inf),
            ("stats_window_size", self._stats_window_size, 1, 10**6),
        ):
            check_integer(name, whole, least, most)
        capacity = self.buffer_size // len(self.task_names)
        if self.batch_size > capacity:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be between 1 and the {capacity} transitions "
                f"that the replay keeps per task (buffer_size {self.buffer_size})"
            )
        for name, low, high in (
            ("gamma", 0, 1),
            ("tau", 0, 1),
            ("learning_rate_decay", 0, 1),
            ("exploration_fraction", 0, 1),
            ("exploration_initial_eps", 0, 1),
            ("exploration_final_eps", 0, 1),
            ("exploration_diversity", 0, np.inf),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be between {low} and {high}")
        for name in ("learning_rate", "huber_delta", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not callable(value) and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        if self.exploration_decay is not None and not 0 < self.exploration_decay <= 1:
            raise ValueError(f"exploration_decay is {self.exploration_decay}; it must be above 0 and at most 1")
        if not 0 < self.guidance_share < 1:
            raise ValueError(f"guidance_share is {self.guidance_share}; it must be above 0 and below 1")
        for name, value, choices in (
            ("td_loss", self.td_loss, get_args(TDLoss)),
            ("target_update_unit", self.target_update_unit, get_args(TargetUnit)),
            ("on_nonfinite", self.on_nonfinite, get_args(OnNonFinite)),
        ):
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(choices)}")

    @property
    def variant(self) -> str:
        """`"aware"` if observations end with the task's one-hot, else `"blind"`."""
        return "aware" if self.one_hot_size else "blind"

    # ------------------------------------------------------------------------------------------------ learning

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 10,
        tb_log_name: str = "MultiTaskDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As in Stable-Baselines3.

        `total_timesteps` counts the steps of all columns; logs are written every `log_interval` finished episodes.
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        # The optimizer's memory of weights that no longer change fades into subnormal numbers, on which a CPU is tens
        # of times slower; flushed to zero they make no difference.
        torch.set_flush_denormal(True)
        before = self._last_obs
        prepared = super()._setup_learn(*args, **kwargs)
        if self._last_obs is not before:  # the environments have been reset
            self._forget_unfinished()
        return prepared

    def _forget_unfinished(self) -> None:
        """Drop what was gathered about episodes that will not be finished."""
        self._n_step_returns.clear()

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """`gradient_steps` updates on `batch_size` transitions of each task."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if len(self.replay_buffer) == 0:
            return  # the first transition is not complete, or was held out
        if self.guidance_buffer is not None:
            if len(self.guidance_buffer) == 0:
                return
            self._set_guidance()
        for batch in self.replay_buffer.sample_several(gradient_steps, batch_size) if gradient_steps else ():
            losses = self._update(batch)
            if losses is None:
                continue
            self._loss_sum += losses
            self._loss_count += 1
            self._n_updates += 1
            if self.target_update_unit == "updates" and self._n_updates % self.target_update_interval == 0:
                self._update_target()

    def _update(self, batch: TaskBatch) -> Tensor | None:
        """One step of the optimizer; returns the losses (T,), or None if it was left out for a number not finite."""
        try:
            gradient, losses = self._balanced_gradient(batch)
        except FloatingPointError as error:
            if isinstance(error, NonFiniteGradientError) and error.task is not None:
                error = FloatingPointError(f"the gradient of task {self.task_names[error.task]} is not finite")
            self._guard.update_failed(error, self._n_updates + 1, self.num_timesteps)
            return None
        if self.max_grad_norm is not None:
            self._clip(gradient, self.max_grad_norm)
        self._optimizer.update(gradient)
        return losses

    def _balanced_gradient(self, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """The direction (D,) that the balancer makes of the task gradients, and the losses (T,)."""
        gradients = self._task_gradients(batch)
        losses = gradients.losses
        assert losses is not None  # the engines put them there
        with torch.no_grad():
            self._guard.check("the loss", losses.tolist())
            balance = self.balancer(gradients, losses)
            self._guard.check("the balancer's weight", balance.coefficients.tolist())
            gradient = balance.update(gradients)
            self._diagnostics = balance.diagnostics
            if self._n_updates % self.conflict_interval == 0:
                self._conflict = conflict_metrics(gradients.gramian)
        return gradient, losses

    def _task_gradients(self, batch: TaskBatch) -> TaskGradients:
        """Each task's gradient of its temporal-difference loss; the losses come with them."""
        if self._chain is not None and not self._chain.chain.hooked:
            return self._chain_gradients(self._chain, batch)
        with torch.no_grad():
            targets = self._targets(batch)
        with self._engine.record():
            losses = self._losses(batch, targets)
        return self._engine.backward(losses)

    @inference
    def _chain_gradients(self, chain: ChainEngine, batch: TaskBatch) -> TaskGradients:
        """`_task_gradients` without autograd, by an engine of the online network's layers."""
        targets = self._targets(batch)
        values = chain.forward(batch.observations)
        losses, slope = self._td_error.losses_and_slope(values, batch.actions, targets)
        gradients = chain.backward(slope, losses)
        if self.balancer.needs_gramian:
            _ = gradients.jacobian  # now, rather than enter inference mode again for it
        return gradients

    def _clip(self, gradient: Tensor, max_norm: float) -> None:
        """Scale `gradient` (D,) down to `max_norm`, in place, as `torch.nn.utils.clip_grad_norm_` does."""
        scale = max_norm / (torch.linalg.vector_norm(gradient).item() + 1e-6)
        if scale < 1:
            gradient.mul_(scale)

    def _set_guidance(self) -> None:
        """Let the balancer look one step of plain gradient descent ahead, at the present learning rate."""
        assert isinstance(self.balancer, AIM)
        rate = self.policy.optimizer.param_groups[0]["lr"]
        if rate > 0:  # a schedule may begin and does end at 0
            self.balancer.set_guidance(self._guidance, eta=rate)

    def _guidance_loss(self) -> Tensor:
        """Temporal-difference loss of all tasks on transitions that are held out from training."""
        assert self.guidance_buffer is not None
        batch = self.guidance_buffer.sample(self.batch_size)
        with torch.no_grad():
            targets = self._targets(batch)
        return self._losses(batch, targets).sum()

    def _lookahead_gradient(self, step: Tensor) -> Tensor:
        """What `LookaheadGuidance` makes of `_guidance_loss`, without autograd: its gradient (D,) at theta - step."""
        assert self.guidance_buffer is not None
        batch = self.guidance_buffer.sample(self.batch_size)
        theta = self._weights
        here = theta.clone()
        theta.sub_(step)
        try:
            return self._chain_gradients(self._guidance_chain, batch).jacobian[0]
        finally:
            theta.copy_(here)

    def _targets(self, batch: TaskBatch) -> Tensor:
        """Bootstrapped returns (T * B,): rewards + discount * Q_target(s', a*), the discount 0 after an end."""
        values = self._target_values(batch.next_observations)  # (T * B, A)
        if self.double_q:
            chosen = self._online_values(batch.next_observations).argmax(1, keepdim=True)
            best = values.gather(1, chosen).squeeze(1)
        else:
            best = values.amax(1)
        targets: Tensor = batch.rewards + batch.discounts * best
        return targets

    def _losses(self, batch: TaskBatch, targets: Tensor) -> Tensor:
        """Mean temporal-difference loss of each task, (T,)."""
        values = self.policy.q_net(batch.observations)
        return self._td_error.losses(values, batch.actions, targets)

    def _update_target(self) -> None:
        self._target_weights.lerp_(self._weights, self.tau)

    # ------------------------------------------------------------------------------------------------ acting

    def predict(
        self,
        observation: NDArray[np.float32] | dict[str, NDArray[np.float32]],
        state: tuple[NDArray[np.float32], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.int64], tuple[NDArray[np.float32], ...] | None]:
        """Actions for one observation (O,) or several (N, O): greedy, or epsilon-greedy if not `deterministic`.

        `state` and `episode_start` are for recurrent policies and are passed through.
        """
        actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        return actions if deterministic else self._explore(actions), state

    def _explore(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """`actions`, each with probability epsilon replaced by a random one."""
        # One epsilon per column where these are the columns' actions.
        rates = self.exploration_rates if actions.shape == self.exploration_rates.shape else self.exploration_rate
        explore = self._exploration_rng.random(actions.shape) < rates
        return np.where(explore, self._random_actions(actions.shape), actions)

    def _random_actions(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        assert isinstance(self.action_space, spaces.Discrete)
        return self._exploration_rng.integers(self.action_space.n, size=shape)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.num_timesteps < learning_starts:
            actions = self._random_actions((n_envs,))
        else:
            # Not `predict`, whose checks and conversions for every kind of input cost more than the network.
            observations = torch.as_tensor(self._last_obs, device=self.device)
            with torch.inference_mode():
                greedy = self._online_values(observations).argmax(1)
            actions = self._explore(greedy.numpy(force=True))
        return actions, actions

    def _store_transition(  # type: ignore[override] # narrower: this agent's replay, arrays only
        self,
        replay_buffer: TaskReplayBuffer,
        buffer_action: NDArray[np.int64],
        new_obs: NDArray[np.float32],
        reward: NDArray[np.float32],
        dones: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        terminals = dones
        next_obs = new_obs
        if dones.any():
            # The vector environment has reset these columns: what followed the action is in the info.
            next_obs, terminals = new_obs.copy(), dones.copy()
            for column in np.flatnonzero(dones):
                next_obs[column] = infos[column]["terminal_observation"]
                terminals[column] = not infos[column].get("TimeLimit.truncated", False)
        observations = cast(NDArray[np.float32], self._last_obs)
        self._last_obs = new_obs
        if not self._guard.step_is_finite(observations, next_obs, reward, self.num_timesteps):
            self._n_step_returns.clear()  # no transition may reach over the gap
            return
        if self.guidance_buffer is not None and (
            len(self.guidance_buffer) == 0 or self._held_out_rng.random() < self.guidance_share
        ):
            replay_buffer = self.guidance_buffer
        step = Step(observations, next_obs, buffer_action, reward, dones, terminals)
        transitions = self._n_step_returns.add(step)
        if transitions is not None:
            replay_buffer.add(*transitions)

    @property
    def exploration_rate(self) -> float:
        """Present epsilon, the mean over columns."""
        return float(self.exploration_rates.mean())

    def _final_rates(self) -> NDArray[np.float64]:
        """The last epsilon of each column, (T * K,)."""
        last = self.n_envs // len(self.task_names) - 1  # column of a task
        places = [column / last for column in range(last + 1)] if last else [0.5]
        rates = [self.exploration_final_eps ** (1 + self.exploration_diversity * place) for place in places]
        return np.array(rates * len(self.task_names))

    def _on_step(self) -> None:
        final, initial = self._final_rates(), self.exploration_initial_eps
        if self.exploration_decay is None:
            done = (1 - self._current_progress_remaining) / max(self.exploration_fraction, 1e-12)
            self.exploration_rates = initial + (final - initial) * min(done, 1.0)
        else:
            self.exploration_rates = np.maximum(final, initial * self.exploration_decay**self._episode_num)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray[np.bool_] | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if dones is None or not dones.any():
            return
        columns_per_task = len(dones) // len(self.task_names)
        for column in np.flatnonzero(dones):
            episode = infos[column].get("episode")
            if episode is not None:
                self._episode_stats[column // columns_per_task].append((episode["r"], episode["l"]))
            finished = self._episode_num + 1 + int(np.count_nonzero(dones[:column]))
            if self.target_update_unit == "episodes" and finished % self.target_update_interval == 0:
                self._update_target()
        self.balancer.record_returns(torch.tensor(self.recent_returns, dtype=torch.float64))

    # ------------------------------------------------------------------------------------------------ logging

    @property
    def recent_returns(self) -> list[float]:
        """Mean return of each task's last finished episodes (`stats_window_size`); NaN before the first."""
        return [safe_mean([r for r, _ in episodes]) for episodes in self._episode_stats]

    @property
    def diagnostics(self) -> dict[str, float]:
        """The balancer's diagnostics at the last update, by their logged names (`balancer/<task>/weight`, ...)."""
        return dict(named({**self._conflict, **self._diagnostics}, self.task_names))

    def dump_logs(self) -> None:
        """Record per-task returns, losses and the balancer's diagnostics, then write one line of logs."""
        record = self.logger.record
        record("env_step", self.num_timesteps, exclude="tensorboard")
        record("train/updates", self._n_updates, exclude="tensorboard")
        elapsed = (time.time_ns() - self.start_time) / 1e9
        record("time/steps_per_s", (self.num_timesteps - self._num_timesteps_at_start) / max(elapsed, 1e-9))
        record("rollout/exploration_rate", self.exploration_rate)
        for task, name in enumerate(self.task_names):
            if self._episode_stats[task]:
                record(f"train/{name}/return", self.recent_returns[task])
                record(f"train/{name}/length", safe_mean([length for _, length in self._episode_stats[task]]))
            if self._loss_count:
                record(f"train/{name}/loss", (self._loss_sum[task] / self._loss_count).item())
        for key, value in self.diagnostics.items():
            record(key, value)
        for key, count in self._guard.skipped.items():
            record(key, count)
        self._loss_sum.zero_()
        self._loss_count = 0
        super().dump_logs()

    # ------------------------------------------------------------------------------------------------ save and load

    _SETTINGS: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "learning_rate_decay",
        "balancer_kwargs",
        "buffer_size",
        "learning_starts",
        "batch_size",
        "tau",
        "gamma",
        "n_step",
        "gradient_steps",
        "target_update_interval",
        "target_update_unit",
        "exploration_fraction",
        "exploration_initial_eps",
        "exploration_final_eps",
        "exploration_diversity",
        "exploration_decay",
        "double_q",
        "td_loss",
        "huber_delta",
        "max_grad_norm",
        "guidance_share",
        "conflict_interval",
        "on_nonfinite",
        "policy_kwargs",
        "verbose",
        "seed",
    )
    _PROGRESS: ClassVar[tuple[str, ...]] = (
        "num_timesteps",
        "_episode_num",
        "_n_updates",
        "exploration_rates",
        "_current_progress_remaining",
    )
    _KINDS: ClassVar[dict[str, type]] = {
        "settings": dict,
        "task_names": tuple,
        "one_hot_size": int,
        "observation_low": np.ndarray,
        "observation_high": np.ndarray,
        "num_actions": int,
        "progress": dict,
        "policy": dict,
        "optimizer": dict,
        "balancer": dict,
    }

    def save(
        self,
        path: str | Path | BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Write networks, optimizer, balancer and settings to one zip file without pickle, atomically.

        The replay is not part of it (`save_replay_buffer` is for that). A learning-rate schedule that is a function is
        saved as its present value. `exclude` and `include` have no effect: there is nothing to choose from.

        Raises:
            ValueError: the balancer was given as an object whose class is not in the registry.
        """
        if isinstance(self._balancer_spec, Balancer):
            raise ValueError("a model whose balancer was given as an object can't be saved: give its name instead")
        checkpoint.save(_model_path(path), self._state())

    def _state(self) -> dict[str, Any]:
        """All that `save` writes."""
        settings = {name: getattr(self, name) for name in self._SETTINGS}
        if callable(self.learning_rate):
            settings["learning_rate"] = self.lr_schedule(self._current_progress_remaining)
        settings["train_freq"] = cast(TrainFreq, self.train_freq).frequency
        settings["stats_window_size"] = self._stats_window_size
        settings["balancer"] = self._balancer_spec
        assert isinstance(self.observation_space, spaces.Box)
        assert isinstance(self.action_space, spaces.Discrete)
        return {
            "agent": type(self).__name__,
            "settings": settings,
            "task_names": self.task_names,
            "one_hot_size": self.one_hot_size,
            "observation_low": self.observation_space.low,
            "observation_high": self.observation_space.high,
            "num_actions": int(self.action_space.n),
            "progress": {name: getattr(self, name) for name in self._PROGRESS},
            "policy": self.policy.state_dict(),
            "optimizer": self.policy.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        """Take over what the agent had learned when `_state` was called."""
        self.policy.load_state_dict(state["policy"])
        self.policy.optimizer.load_state_dict(state["optimizer"])
        self.balancer.load_state_dict(state["balancer"])
        for name in self._PROGRESS:
            setattr(self, name, state["progress"][name])

    def training_state(self) -> dict[str, Any]:
        """All that the rest of a training depends on, between two rollouts, but for the environments and the logger.

        Unlike what `save` writes, this holds the replay, every generator of the agent and the unfinished statistics.
        """
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        state = {
            **self._state(),
            "replay": self.replay_buffer.state_dict(),
            "n_step": self._n_step_returns.state_dict(),
            "exploration": self.exploration_generator_state,
            "last_observations": self._last_obs,
            "last_episode_starts": self._last_episode_starts,
            "episode_stats": [list(episodes) for episodes in self._episode_stats],
            "episode_infos": list(self.ep_info_buffer),
            "episode_successes": list(self.ep_success_buffer),
            "loss_sum": self._loss_sum,
            "loss_count": self._loss_count,
            "diagnostics": {**self._conflict, **self._diagnostics},
            "skipped": dict(self._guard.skipped),
            "elapsed_ns": time.time_ns() - self.start_time,
        }
        if self.guidance_buffer is not None:
            state |= {
                "guidance": self.guidance_buffer.state_dict(),
                "held_out": dict(self._held_out_rng.bit_generator.state),
            }
        return state

    def set_training_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of `training_state`, for an agent made with the same arguments whose `learn` has begun.

        Call it from a callback's `_on_training_start`: what `learn` sets up, this replaces.
        """
        self._set_state(state)
        self.replay_buffer.load_state_dict(state["replay"])
        self._n_step_returns.load_state_dict(state["n_step"])
        self._exploration_rng.bit_generator.state = state["exploration"]
        self._last_obs = state["last_observations"]
        self._last_episode_starts = state["last_episode_starts"]
        self._episode_stats = [deque(episodes, self._stats_window_size) for episodes in state["episode_stats"]]
        self.ep_info_buffer = deque(state["episode_infos"], self._stats_window_size)
        self.ep_success_buffer = deque(state["episode_successes"], self._stats_window_size)
        self._loss_sum = state["loss_sum"].to(self.device)
        self._loss_count = state["loss_count"]
        self._conflict, self._diagnostics = dict(state["diagnostics"]), {}
        self._guard.skipped.clear()
        self._guard.skipped.update(state["skipped"])
        self.start_time = time.time_ns() - state["elapsed_ns"]
        if self.guidance_buffer is not None:
            self.guidance_buffer.load_state_dict(state["guidance"])
            self._held_out_rng.bit_generator.state = state["held_out"]
            self._set_guidance()  # an update without one of its own, at a learning rate of 0, goes by the last

    @property
    def exploration_generator_state(self) -> dict[str, Any]:
        """Where the generator that explores is in its sequence."""
        return dict(self._exploration_rng.bit_generator.state)

    @classmethod
    def load(
        cls,
        path: str | Path | BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """The agent as it was saved, ready to predict, and with `env` ready to go on learning with an empty replay.

        Args:
            path: the file; `.zip` may be left out.
            env: environment to go on learning in; its tasks and spaces must be the saved ones. Default None.
            device: where to put it.
            custom_objects: not supported, as nothing is unpickled; in Stable-Baselines3's signature.
            print_system_info: ignored.
            force_reset: ignored: the first `learn` always resets the environment.
            **kwargs: settings to change, for example `learning_rate=1e-4`.

        Raises:
            CheckpointError: the file is missing, damaged, or no model of this class, or what it says does not go with
                what it holds, or a setting is out of range. Names that `save` does not write are refused, and so is a
                network that is larger than the weights in the file, before it is made.
            ValueError: `env` does not fit the model.
        """
        state = load_state(path)
        name, device = repr(str(path)), get_device(device)
        if (kind := state.get("agent", "something else")) != cls.__name__:
            raise checkpoint.CheckpointError(f"{name} holds {one_line(kind)}, not a {cls.__name__}")
        try:
            agent = cls._from_state(state, device, kwargs)
        except Exception as error:  # a stranger may have written anything
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise checkpoint.CheckpointError(f"cannot load agent {name}: {one_line(reason)}") from error
        if env is not None:
            agent.set_env(env)
        return agent

    @classmethod
    def _from_state(cls, state: Mapping[str, Any], device: torch.device, changes: Mapping[str, Any]) -> Self:
        """The agent whose `_state` was `state`, with other settings where `changes` has them."""
        for name, kind in cls._KINDS.items():
            if type(state[name]) is not kind:
                raise ValueError(f"{name} is a {type(state[name]).__name__}, not a {kind.__name__}")
        settings, progress, names = state["settings"], state["progress"], state["task_names"]
        if unknown := settings.keys() - {*cls._SETTINGS, "train_freq", "stats_window_size", "balancer"}:
            raise ValueError(f"unknown settings: {', '.join(map(repr, unknown))}")
        if unknown := progress.keys() - set(cls._PROGRESS):
            raise ValueError(f"unknown progress: {', '.join(map(repr, unknown))}")
        if not all(isinstance(task, str) for task in names) or len(set(names)) < len(names):
            raise ValueError("its tasks are not distinct names")
        for name, count, least in (
            ("number of tasks", len(names), 1),
            ("one_hot_size", state["one_hot_size"], 0),
            ("num_actions", state["num_actions"], 1),
        ):
            check_integer(name, count, least, MOST_TASKS)
        agent = cls("MlpPolicy", None, device=device, _init_setup_model=False, **{**settings, **changes})
        for name in cls._PROGRESS:
            if type(progress[name]) is not type(getattr(agent, name)):
                raise ValueError(f"{name} is a {type(progress[name]).__name__}")
        rates = progress["exploration_rates"]
        if rates.ndim != 1 or rates.dtype != np.float64:
            raise ValueError("exploration_rates must be a list of float64")
        agent.observation_space = spaces.Box(state["observation_low"], state["observation_high"])
        agent.action_space = spaces.Discrete(state["num_actions"])
        agent.task_names = names
        agent.one_hot_size = state["one_hot_size"]
        agent.n_envs = len(names)
        with at_most(sum(weight.numel() for weight in state["policy"].values()) // 2):  # a half is the target network's
            agent._setup_model()
        agent._set_state(state)
        return agent

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Learn in `env` from now on; it must have the tasks and spaces of the model.

        Raises:
            ValueError: it has not.
        """
        wrapped = self._wrap_env(env, self.verbose)
        names = _task_names(wrapped)
        if names != self.task_names:
            raise ValueError(
                f"the environment's tasks are {', '.join(names)}; the model's are {', '.join(self.task_names)}"
            )
        self.n_envs = wrapped.num_envs
        super().set_env(wrapped, force_reset)

    def save_replay_buffer(self, path: str | Path | BufferedIOBase) -> None:
        """Write the replay to a file without pickle."""
        state = {"replay": self.replay_buffer.state_dict()}
        if self.guidance_buffer is not None:
            state["guidance"] = self.guidance_buffer.state_dict()
        checkpoint.save(path, state)

    def load_replay_buffer(self, path: str | Path | BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Counterpart of `save_replay_buffer`; `truncate_last_traj` has no effect.

        Raises:
            CheckpointError: the file is missing, damaged, or holds no replay.
            ValueError: the replay has another shape, or is none. Nothing has changed then.
        """
        state = checkpoint.load(path)
        if "replay" not in state:
            raise checkpoint.CheckpointError(f"{str(path)!r} holds no replay")
        self.replay_buffer.check_state(state["replay"])
        if self.guidance_buffer is not None and "guidance" in state:
            self.guidance_buffer.load_state_dict(state["guidance"])
        self.replay_buffer.load_state_dict(state["replay"])

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "balancer"], []


def load_state(path: str | Path | BufferedIOBase) -> dict[str, Any]:
    """What `MultiTaskDQN.save` wrote; `.zip` may be left out."""
    as_given = not isinstance(path, (str, Path)) or Path(path).exists()
    return checkpoint.load(path if as_given else _model_path(str(path)))


def _model_path(path: str | Path | BufferedIOBase) -> str | Path | BufferedIOBase:
    """`path` with `.zip`, as Stable-Baselines3 adds it to a name without an ending."""
    return f"{path}.zip" if isinstance(path, str) and not Path(path).suffix else path


def _task_names(env: VecEnv) -> tuple[str, ...]:
    """The tasks of the columns, which must come task after task and be equally many of each."""
    try:
        columns = [getattr(task, "name", str(task)) for task in env.get_attr("task")]
    except AttributeError:
        columns = ["task"] * env.num_envs
    names = tuple(dict.fromkeys(columns))
    each = len(columns) // len(names)
    if columns != [name for name in names for _ in range(each)]:
        raise ValueError(f"columns must be equally many per task and task after task, not {', '.join(columns)}")
    return names


def _one_hot_size(env: VecEnv) -> int:
    """How many tasks the one-hot in the observation ranges over; 0 if there is none."""
    wrapped = env.env_is_wrapped(TaskOneHot)
    if not any(wrapped):
        return 0
    if not all(wrapped):
        raise ValueError("either all columns or none must be wrapped in TaskOneHot")
    sizes = {len(one_hot) for one_hot in env.get_attr("one_hot")}
    return sizes.pop()
