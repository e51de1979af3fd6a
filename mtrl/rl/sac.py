"""Multi-task soft actor-critic: one actor and critics for all tasks, one replay and one temperature per task."""

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

from mtrl.balancers import Balancer, make_balancer
from mtrl.files import one_line
from mtrl.rl.actions import ActionScale, own_actions_of
from mtrl.rl.actor_critic import (
    Actor,
    Critics,
    MultiTaskSACCnnPolicy,
    MultiTaskSACInputPolicy,
    MultiTaskSACPolicy,
)
from mtrl.rl.algorithm import MultiTaskAlgorithm
from mtrl.rl.sac_update import ActorCriticUpdate
from mtrl.rl.settings import ReplaySettings, SACOptions, SACSettings


class MultiTaskSAC(MultiTaskAlgorithm):
    """Soft actor-critic on several tasks at once; balancers combine the tasks' gradients of critics and actor.

    A Stable-Baselines3 algorithm: `learn`, `predict`, `save`, `load`, callbacks and logger work as they do there. The
    differences from `stable_baselines3.SAC` are deliberate:

    * the columns of `env` belong to tasks, in task-major order (`mtrl.rl.make_task_vec_env`); each task has its own
      replay, and an update takes `batch_size` transitions of *every* task;
    * an update computes one gradient per task for the critics and one for the actor, each in a single backward pass,
      and a balancer of its own combines either;
    * each task has its own temperature;
    * transitions have 3 steps of reward by default;
    * saved models hold no pickle.

    Args:
        policy: `"MlpPolicy"`, `"CnnPolicy"` for images, `"MultiInputPolicy"` for dictionaries, or a subclass of
            `MultiTaskSACPolicy`.
        env: see `MultiTaskDQN`. Actions are in a Box with bounds.
        critic_balancer: a name from `mtrl.balancers.names()` or a `Balancer`, for the critics. Default `"equal"`.
        critic_balancer_kwargs: its arguments, if it is given by name.
        actor_balancer: the same for the actor, whose losses may be negative. Default `"equal"`.
        actor_balancer_kwargs: its arguments, if it is given by name.
        policy_kwargs: arguments of the policy, such as `net_arch`; see `MultiTaskSACPolicy`.
        tensorboard_log: folder for TensorBoard files. Default None.
        verbose: 0 is silent, 1 prints logs.
        seed: the seed of everything random. Default None: fresh entropy.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        **settings: the fields of `SACSettings`, which describes them with their defaults and limits.

    Attributes:
        settings: all settings, as a `SACSettings`.
        task_names: names of the tasks, in order.
        critic_balancer: the balancer of the critics; `balancer` is the same.
        actor_balancer: the balancer of the actor.
        update: what changes the weights; see `ActorCriticUpdate`.

    Raises:
        ValueError: a setting is unknown, has the wrong type or is out of its limits, the environment's columns are not
            as described, actions are not in a Box with bounds, or the actor's balancer needs positive losses.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MultiTaskSACPolicy,
        "CnnPolicy": MultiTaskSACCnnPolicy,
        "MultiInputPolicy": MultiTaskSACInputPolicy,
    }
    settings_type: ClassVar[type[ReplaySettings]] = SACSettings
    of_balancers: ClassVar[tuple[str, ...]] = (
        "critic_balancer",
        "critic_balancer_kwargs",
        "actor_balancer",
        "actor_balancer_kwargs",
    )
    parameters: ClassVar[dict[str, str]] = {
        **MultiTaskAlgorithm.parameters,
        "actor_balancer": "actor_balancer",
        "update.actor.optimizer": "actor_optimizer",
        "update.temperature_optimizer": "temperature_optimizer",
    }

    settings: SACSettings
    policy: MultiTaskSACPolicy
    update: ActorCriticUpdate
    actor_balancer: Balancer

    def __init__(
        self,
        policy: str | type[MultiTaskSACPolicy],
        env: GymEnv | str | None,
        critic_balancer: str | Balancer = "equal",
        critic_balancer_kwargs: Mapping[str, Any] | None = None,
        actor_balancer: str | Balancer = "equal",
        actor_balancer_kwargs: Mapping[str, Any] | None = None,
        *,
        policy_kwargs: dict[str, Any] | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **settings: Unpack[SACOptions],
    ) -> None:
        super().__init__(
            policy,
            env,
            critic_balancer,
            critic_balancer_kwargs,
            settings,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            supported_action_spaces=(spaces.Box,),
        )
        self.actor_balancer_name = None if isinstance(actor_balancer, Balancer) else actor_balancer
        self.actor_balancer_kwargs = dict(actor_balancer_kwargs or {})
        if isinstance(actor_balancer, Balancer):
            self.actor_balancer = actor_balancer
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def check_actions(cls, space: spaces.Space[Any]) -> None:
        """See `MultiTaskAlgorithm.check_actions`."""
        if not isinstance(space, spaces.Box):
            can = "; MultiTaskDQN acts in Discrete(n)" if isinstance(space, spaces.Discrete) else ""
            raise ValueError(f"actions are in {one_line(space)}; {cls.__name__} acts in a Box with bounds only{can}")
        ActionScale(space)

    def _make_balancers(self) -> None:
        super()._make_balancers()
        if self.actor_balancer_name is not None:
            kwargs = self.actor_balancer_kwargs
            self.actor_balancer = make_balancer(self.actor_balancer_name, len(self.task_names), **kwargs)
        if self.actor_balancer.needs_positive_losses:
            name = self.actor_balancer_name or type(self.actor_balancer).__name__
            raise ValueError(
                f"the balancer {name} needs positive losses, and those of an actor may be negative: give "
                f"{self.actor_balancer.for_any_losses} among actor_balancer_kwargs, or another actor_balancer"
            )
        if self.actor_balancer is self.balancer:
            raise ValueError("one balancer can't serve critics and actor, because it remembers; give two")
        self.actor_balancer.to(self.device)

    @property
    def critic_balancer(self) -> Balancer:
        """The balancer of the critics."""
        return self.balancer

    @property
    def actor(self) -> Actor:  # type: ignore[override] # an attribute there, which nobody sets here
        """The actor, as in Stable-Baselines3; it is `policy.actor`."""
        return self.policy.actor

    @property
    def critic(self) -> Critics:
        """The critics; see `actor`."""
        return self.policy.critic

    @property
    def critic_target(self) -> Critics:
        """The target critics; see `actor`."""
        return self.policy.critic_target

    @property
    def balancers(self) -> tuple[Balancer, ...]:
        """The balancers of the critics and of the actor."""
        return (self.balancer, self.actor_balancer)

    def balancer_arguments(self) -> dict[str, Any]:
        """See `SavedAlgorithm.balancer_arguments`."""
        of_critic = (self.balancer_name, self.balancer_kwargs)
        of_actor = (self.actor_balancer_name, self.actor_balancer_kwargs)
        return dict(zip(self.of_balancers, (*of_critic, *of_actor), strict=True))

    def make_update(self) -> ActorCriticUpdate:
        """The update of this agent's networks, by its balancers and settings."""
        self.policy.generator = self.exploration_generator
        *_, seed = (int(word) for word in np.random.SeedSequence(self.seed).generate_state(4, np.uint64))
        self.policy.actor.own_actions = own_actions_of(self)
        update = ActorCriticUpdate(
            self.policy,
            {"critic": self.balancer, "actor": self.actor_balancer},
            self.settings,
            self.guard,
            self.lr_schedule(1),
            seed >> 1,
            None if self.guidance_buffer is None else self.sample_held_out,
            self.actions_of_tasks,
        )
        self.policy.optimizer = update.critic.optimizer
        return update

    def _after_update(self) -> None:
        if self._n_updates % self.settings.target_update_interval == 0:
            self.update.update_target(self.tau)

    # ----------------------------------------------------------------- acting

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[np.float32], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], tuple[NDArray[np.float32], ...] | None]:
        """Actions for one observation or for several (N, ...), within the bounds of the action space.

        They are those at the mean of the actor's distribution, or drawn from it if not `deterministic`. `state` and
        `episode_start` are for recurrent policies and are passed through.
        """
        self._warn_of_evaluate_policy(episode_start)
        return self.policy.predict(observation, state, episode_start, deterministic)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Actions of all columns as the environment takes them, and the same from -1 to 1 for the replay."""
        shape = (n_envs, self.policy.num_actions)
        # `predict` has checks and conversions for every kind of input, which cost more than the network.
        rows = torch.as_tensor(cast(NDArray[Any], self._last_obs), device=self.device)
        with torch.inference_mode():
            if self.num_timesteps < learning_starts:
                drawn = self.exploration_generator.uniform(-1, 1, shape).astype(np.float32)
                found = self.actor.only_own(rows, torch.as_tensor(drawn, device=self.device))
            else:
                found = self.policy(rows)
        actions: NDArray[np.float32] = found.numpy(force=True)
        of_space = cast(spaces.Box, self.action_space).shape
        return self.policy.unscale_action(actions.reshape(n_envs, *of_space)), actions

    def dump_logs(self) -> None:
        """Record temperatures, losses of the actor, scales of rewards and values, and the rest as every agent does."""
        update, record = self.update, self.logger.record
        for task, name in enumerate(self.task_names):
            record(f"train/{name}/ent_coef", float(update.temperatures[task]))
            if self._loss_count:
                record(f"train/{name}/actor_loss", float(update.actor_losses[task]))
            for key, numbers in update.scales().items():
                record(f"train/{name}/{key}", numbers[task])
        super().dump_logs()
