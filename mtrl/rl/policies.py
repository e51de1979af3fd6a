"""The policy of a Q-learning agent: online and target network, and greedy actions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from mtrl.rl.networks import SharedQNetwork


class MultiTaskQPolicy(BasePolicy):
    """Acts greedily on a `SharedQNetwork`. This is the `"MlpPolicy"` of `MultiTaskDQN`.

    Args:
        observation_space: a one-dimensional Box (O,); in the aware variant its last `num_tasks` values are a one-hot.
        action_space: Discrete.
        lr_schedule: unused, because the agent makes the optimizer. Stable-Baselines3 has this argument.
        num_tasks: tasks in the one-hot, 0 for the blind variant.
        **network_kwargs: arguments of the network: `embedding_dim` (default 8), `net_arch` (widths of the hidden
            layers, default (256, 128)), `layer_norm` (default True).
    """

    q_net: SharedQNetwork
    q_net_target: SharedQNetwork

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        num_tasks: int = 0,
        **network_kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space)
        sizes = (observation_space.shape[0], int(action_space.n), num_tasks)
        self.q_net = self.make_network(*sizes, **network_kwargs)
        self.q_net_target = self.make_network(*sizes, **network_kwargs)
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        self.q_net_target.requires_grad_(False)

    def make_network(
        self,
        observation_size: int,
        num_actions: int,
        num_tasks: int,
        embedding_dim: int = 8,
        net_arch: Sequence[int] = (256, 128),
        layer_norm: bool = True,
    ) -> Any:
        """Make the network. This is called twice: for the online network and for the target network."""
        return SharedQNetwork(observation_size, num_actions, num_tasks, embedding_dim, net_arch, layer_norm)

    @classmethod
    def network_arguments(cls) -> list[str] | None:
        """The names that `policy_kwargs` may hold: the arguments of `make_network`. None if it takes any."""
        of_agent = ("self", "observation_size", "num_actions", "num_tasks")
        arguments = inspect.signature(cls.make_network).parameters.values()
        if any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
            return None
        return [argument.name for argument in arguments if argument.name not in of_agent]

    def forward(self, observation: Tensor, deterministic: bool = True) -> Tensor:
        """Greedy actions (N,) for observations (N, O)."""
        return self._predict(observation, deterministic)

    def _predict(  # type: ignore[override] # no dictionaries
        self, observation: Tensor, deterministic: bool = True
    ) -> Tensor:
        return torch.argmax(self.q_net(observation.float()), dim=1)

    def set_training_mode(self, mode: bool) -> None:
        """Do nothing, because no layer of these networks behaves differently in training."""

    def _get_constructor_parameters(self) -> dict[str, Any]:
        raise NotImplementedError("a policy is saved and loaded with its agent")
