"""The networks and policies of an agent with an actor and critics, for continuous actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from mtrl.limits import check_integer
from mtrl.rl.actions import ActionScale, OwnActions, number_of_actions
from mtrl.rl.feature_networks import TaskFeatures
from mtrl.rl.networks import SharedQNetwork, shared_part
from mtrl.rl.policies import OF_POLICY, MultiTaskPolicy

LOG_STD = (-20.0, 2.0)  # limits of the logarithm of the deviation, as in Stable-Baselines3
MOST_CRITICS = 100


class FeaturesNetworks(nn.Module):
    """Networks on common features of observations: the actor's one network, or those of all critics.

    Args:
        features: makes features (N, F) of rows of observations.
        networks: the networks on them.

    Attributes:
        features_extractor: the features extractor; None if observations are vectors, which need none.
    """

    def __init__(self, features: nn.Module, networks: Sequence[SharedQNetwork]) -> None:
        super().__init__()
        self.features = features
        self.networks = nn.ModuleList(networks)

    @property
    def features_extractor(self) -> nn.Module | None:
        """The features extractor; None if there is none."""
        extractor: nn.Module | None = getattr(self.features, "features_extractor", None)
        return extractor

    @property
    def last_shared_layer(self) -> nn.Module:
        """The last hidden layer of the first network. Methods that balance norms measure its gradients."""
        return cast(SharedQNetwork, self.networks[0]).last_shared_layer

    @property
    def shared(self) -> nn.Module:
        """The part that tasks share, whose gradients are balanced."""
        parts = [shared_part(network) for network in self.networks]
        if all(part is network for part, network in zip(parts, self.networks, strict=True)):
            return self
        return nn.ModuleList([self.features, *parts])


class Actor(FeaturesNetworks):
    """The distribution of actions: a normal one, squashed by the hyperbolic tangent to (-1, 1).

    The numbers of an action that a task lacks are 0, and do not count in the density.

    Attributes:
        own_actions: which numbers of an action each task has; None if all have all. The agent sets it.
    """

    own_actions: OwnActions | None

    def __init__(self, features: nn.Module, networks: Sequence[SharedQNetwork]) -> None:
        super().__init__(features, networks)
        self.own_actions = None

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the deviation of the actions before squashing, each (N, A), for rows (N, ...)."""
        mean, log_std = self.networks[0](self.features(rows)).chunk(2, 1)
        return mean, log_std.clamp(*LOG_STD)

    def greedy(self, rows: Tensor) -> Tensor:
        """The actions (N, A) at the mean of the distribution, from -1 to 1."""
        return self.only_own(rows, torch.tanh(self(rows)[0]))

    def only_own(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """The numbers (N, A), with 0 for those that belong to no action of the tasks of `rows` (N, ...)."""
        return numbers if self.own_actions is None else numbers * self.own_actions.mask(rows)

    def sample(self, rows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (N, A) from -1 to 1, and the logarithm of their density (N,).

        The correction for squashing is that of Haarnoja et al. 2018, appendix C, with the 1e-6 of Stable-Baselines3.

        Args:
            rows: rows of observations, (N, ...).
            noise: standard normal numbers (N, A), from which the actions are made.
        """
        mean, log_std = self(rows)
        actions = self.only_own(rows, torch.tanh(mean + log_std.exp() * noise))
        return actions, self.only_own(rows, log_densities(actions, log_std, noise)).sum(1)


def log_densities(actions: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """The logarithms of the densities (N, A) of squashed numbers (N, A), from noise with deviation exp(log_std)."""
    of_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    return of_normal - torch.log(1 - actions.square() + 1e-6)


class Critics(FeaturesNetworks):
    """Several estimates of the value of an action in a state."""

    def forward(self, rows: Tensor, actions: Tensor) -> Tensor:
        """The values (C, N) of actions (N, A), from -1 to 1, by each of the C critics, for rows (N, ...)."""
        # The action comes first, so that the task's one-hot stays at the end, where networks expect it.
        inputs = torch.cat((actions, self.features(rows)), 1)
        return torch.stack([network(inputs).squeeze(1) for network in self.networks])


class MultiTaskSACPolicy(MultiTaskPolicy):
    """Actor, critics and target critics, all shared by the tasks. This is the `"MlpPolicy"` of `MultiTaskSAC`.

    The arguments and attributes of `MultiTaskPolicy` come before these.

    Args:
        action_space: a Box with bounds.
        lr_schedule: unused, because the agent makes the optimizers. Stable-Baselines3 has this argument.
        n_critics: the number of critics, of whose values the lowest counts. Default 2.
        **kwargs: arguments of `MultiTaskPolicy`, and of the networks: `net_arch` (widths of the hidden layers, or a
            dictionary with the widths of the actor's, `pi`, and of the critics', `qf`; default (256, 128), and none on
            the features of `NatureCNN`), `embedding_dim` (default 8), `layer_norm` (default False), `activation_fn`
            (default `nn.ReLU`), `heads` (`"shared"` or `"per_task"`).

    Attributes:
        actor: the actor.
        critic: the critics.
        critic_target: the target critics.
        log_ent_coef: the logarithm of the temperature of each task, (T,). The agent sets it.
        generator: draws the noise of actions that are not deterministic. The agent sets it.

    Raises:
        ValueError: an argument is out of its limits, or the observations do not fit the policy.
    """

    acts_by = "actor"
    log_ent_coef: nn.Parameter

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        num_tasks: int = 0,
        *,
        n_critics: int = 2,
        **kwargs: Any,
    ) -> None:
        check_integer("n_critics", n_critics, 1, MOST_CRITICS)
        of_policy = {name: kwargs.pop(name) for name in OF_POLICY if name in kwargs}
        super().__init__(observation_space, action_space, num_tasks, squash_output=True, **of_policy)
        self.num_actions = number_of_actions(action_space)
        self.scale = ActionScale(action_space)
        kwargs = {**self.network_defaults(), **kwargs}
        self.actor = Actor(*self._networks("pi", 1, 0, 2 * self.num_actions, kwargs))
        self.critic = Critics(*self._networks("qf", n_critics, self.num_actions, 1, kwargs))
        self.critic_target = Critics(*self._networks("qf", n_critics, self.num_actions, 1, kwargs))
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)
        self.critic_target.eval()
        self.generator = np.random.default_rng()

    def _networks(
        self, role: str, count: int, further_inputs: int, outputs: int, kwargs: Mapping[str, Any]
    ) -> tuple[nn.Module, list[SharedQNetwork]]:
        """The features of observations, and `count` networks on them."""
        if isinstance(widths := kwargs.get("net_arch"), Mapping):
            if sorted(widths) != ["pi", "qf"]:
                raise ValueError(f"net_arch is {dict(widths)}; it must be a list, or have the keys 'pi' and 'qf'")
            kwargs = {**kwargs, "net_arch": widths[role]}
        features: nn.Module = nn.Identity()
        size = self.rows.numbers
        if self.has_features:
            features = TaskFeatures(self.rows, self.make_features_extractor(), self.normalize_images)
            size = features.size
        arguments = (further_inputs + size, outputs, self.rows.one_hot_size)
        return features, [self.make_network(*arguments, **kwargs) for _ in range(count)]

    def make_network(
        self,
        observation_size: int,
        num_outputs: int,
        num_tasks: int,
        embedding_dim: int = 8,
        net_arch: Sequence[int] = (256, 128),
        layer_norm: bool = False,
        activation_fn: type[nn.Module] = nn.ReLU,
        heads: str = "shared",
    ) -> SharedQNetwork:
        """Make the actor's network or that of a critic. This is called once for the actor and twice for each critic."""
        return SharedQNetwork(
            observation_size, num_outputs, num_tasks, embedding_dim, net_arch, layer_norm, activation_fn, heads
        )

    @classmethod
    def network_arguments(cls) -> list[str] | None:
        """See `MultiTaskPolicy.network_arguments`."""
        known = super().network_arguments()
        return None if known is None else ["n_critics", *known]

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """Actions (N, A) from -1 to 1 for rows (N, ...) of observations."""
        if self.rows.is_flat:
            observation = observation.float()
        if deterministic:
            return self.actor.greedy(observation)
        noise = self.generator.standard_normal((len(observation), self.num_actions), np.float32)
        return self.actor.sample(observation, torch.as_tensor(noise, device=self.device))[0]

    def unscale_action(self, scaled_action: NDArray[np.float32]) -> NDArray[Any]:
        """Actions (N, ...) as the action space has them, for actions from -1 to 1 in its shape; see `ActionScale`."""
        return self.scale(scaled_action)

    def forward(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        """Actions (N, A) from -1 to 1 for rows (N, ...) of observations."""
        return self._predict(observation, deterministic)


class MultiTaskSACCnnPolicy(MultiTaskSACPolicy):
    """The `"CnnPolicy"` of `MultiTaskSAC`: a `MultiTaskSACPolicy` on the features that `NatureCNN` makes of images."""

    extractor: ClassVar[type[BaseFeaturesExtractor]] = NatureCNN


class MultiTaskSACInputPolicy(MultiTaskSACPolicy):
    """The `"MultiInputPolicy"` of `MultiTaskSAC`: a `MultiTaskSACPolicy` on the features of dictionaries."""

    extractor: ClassVar[type[BaseFeaturesExtractor]] = CombinedExtractor
