"""The policies of agents, and those of Q-learning: online and target network, and greedy actions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from mtrl.files import one_line
from mtrl.limits import check_names
from mtrl.rl.actions import OwnActions
from mtrl.rl.feature_networks import ACTIVATIONS, EXTRACTORS, FeaturesQNetwork, make_extractor
from mtrl.rl.networks import SharedQNetwork
from mtrl.rl.observations import ObservationRows, whole_space

OF_POLICY = ("features_extractor_class", "features_extractor_kwargs", "normalize_images", "optimizer_kwargs")
OF_OPTIMIZER = ("betas", "eps", "weight_decay")
CLASSES: dict[str, Mapping[str, type]] = {"features_extractor_class": EXTRACTORS, "activation_fn": ACTIVATIONS}
"""The policy_kwargs that are classes, and the names of classes that a saved model may hold."""


class MultiTaskPolicy(BasePolicy):
    """What the policies of all agents share: rows of observations, features extractors, and the names of arguments.

    Vectors go straight into the networks. Other observations go through a features extractor of Stable-Baselines3
    first, by default the one that flattens them; see `TaskFeatures`.

    Args:
        observation_space: a Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these. In the aware variant a
            vector ends with a one-hot of the task, and other observations have it beside them; see `TaskOneHot`.
        action_space: the actions.
        num_tasks: tasks in the one-hot, 0 for the blind variant.
        features_extractor_class: a class of Stable-Baselines3's `BaseFeaturesExtractor`.
        features_extractor_kwargs: its arguments. Default: none.
        normalize_images: whether images are divided by 255. Default True.
        optimizer_kwargs: `betas`, `eps` and `weight_decay` of `torch.optim.Adam`. Default: its own.
        squash_output: whether actions are made between -1 and 1, and then scaled to the action space. Default False.

    Attributes:
        rows: how observations are laid out in the replay.
        has_features: whether observations go through a features extractor.

    Raises:
        ValueError: an argument is out of its limits, or the observations do not fit the policy.
    """

    extractor: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor
    takes_vectors_only: ClassVar[bool] = False
    """Whether the networks cannot work on the features of an extractor."""
    acts_by: ClassVar[str] = "q_net"
    """The network that acts, which `save_weights` writes."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        num_tasks: int = 0,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: Mapping[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        squash_output: bool = False,
    ) -> None:
        kind = features_extractor_class or self.extractor
        super().__init__(
            observation_space,
            action_space,
            kind,
            dict(features_extractor_kwargs or {}),
            normalize_images=normalize_images,
            optimizer_kwargs=dict(optimizer_kwargs or {}),
            squash_output=squash_output,
        )
        check_names("optimizer_kwargs", self.optimizer_kwargs, OF_OPTIMIZER)
        self.rows = ObservationRows(observation_space, num_tasks)
        self.has_features = not (self.rows.is_flat and kind is FlattenExtractor)
        if self.has_features and self.takes_vectors_only:
            raise ValueError(
                f"{type(self).__name__} takes vectors only, not observations in {one_line(observation_space)}"
            )

    def network_defaults(self) -> dict[str, Any]:
        """The defaults of the networks that depend on the observations: no hidden layers on those of `NatureCNN`."""
        is_cnn = self.has_features and self.features_extractor_class is NatureCNN and not self.takes_vectors_only
        return {"net_arch": ()} if is_cnn else {}

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """A new features extractor of the observations without the task's one-hot."""
        space = whole_space(self.observation_space, self.rows.one_hot_size)
        if isinstance(space, spaces.Dict) and self.features_extractor_class is FlattenExtractor:
            raise ValueError(
                "MlpPolicy is for vectors, and the observations are a dictionary; use MultiInputPolicy, or wrap every "
                "environment in gymnasium.wrappers.FlattenObservation"
            )
        return make_extractor(self.features_extractor_class, space, self.features_extractor_kwargs)

    def make_network(self, observation_size: int, num_outputs: int, num_tasks: int) -> Any:
        """Make a network. A subclass has its arguments after these."""
        raise NotImplementedError

    @classmethod
    def network_arguments(cls) -> list[str] | None:
        """The names that `policy_kwargs` may hold: those above and the arguments of `make_network`.

        None if `make_network` takes any.
        """
        of_agent = ("self", "observation_size", "num_actions", "num_outputs", "num_tasks")
        arguments = inspect.signature(cls.make_network).parameters.values()
        if any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
            return None
        own = [argument.name for argument in arguments if argument.name not in of_agent]
        return [*own, *(OF_POLICY[-1:] if cls.takes_vectors_only else OF_POLICY)]

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """Rows (N, ...) of one observation or several, as the networks take them, and whether there are several."""
        try:
            tensors, several = super().obs_to_tensor(observation)
        except ValueError as error:
            if not self.rows.one_hot_size:
                raise
            size = self.rows.one_hot_size
            raise ValueError(
                f"{one_line(error)}; this model has learned with the task's one-hot of {size} numbers in its "
                "observations, which mtrl.rl.TaskOneHot adds"
            ) from error
        if isinstance(tensors, dict):
            rows = self.rows.of({key: tensor.numpy(force=True) for key, tensor in tensors.items()})
        else:
            rows = self.rows.of(tensors.numpy(force=True))
        return torch.as_tensor(rows, device=self.device), several

    def set_training_mode(self, mode: bool) -> None:
        """Put the network that acts into training mode or out of it; only a features extractor knows a difference."""
        if self.has_features:
            getattr(self, self.acts_by).train(mode)

    def load_acting(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of the network that acts, by their names in `state_dict`.

        Raises:
            RuntimeError: names or shapes do not fit.
        """
        prefix = f"{self.acts_by}."
        own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        if len(own) < len(weights):
            raise ValueError(f"there are weights other than those of {self.acts_by}")
        getattr(self, self.acts_by).load_state_dict(own)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        raise NotImplementedError(
            "a policy is saved and loaded with its agent, by save and load; save_weights and load_weights of the agent "
            "write and read the network that acts alone"
        )


class MultiTaskQPolicy(MultiTaskPolicy):
    """Acts greedily on a `SharedQNetwork`. This is the `"MlpPolicy"` of `MultiTaskDQN`.

    The arguments and attributes of `MultiTaskPolicy` come before these.

    Args:
        lr_schedule: unused, because the agent makes the optimizer. Stable-Baselines3 has this argument.
        **kwargs: arguments of `MultiTaskPolicy`, and of the network: `embedding_dim` (default 8), `net_arch` (widths of
            the hidden layers, default (256, 128), and none on the features of `NatureCNN`, as in Stable-Baselines3),
            `layer_norm` (default True), `activation_fn` (default `nn.ReLU`), `heads` (`"shared"` or `"per_task"`).

    Attributes:
        own_actions: which actions each task has; None if all have the same. The agent sets it.

    Raises:
        ValueError: an argument is out of its limits, or the observations do not fit the policy.
    """

    q_net: Any
    q_net_target: Any

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        num_tasks: int = 0,
        **kwargs: Any,
    ) -> None:
        of_policy = {name: kwargs.pop(name) for name in OF_POLICY if name in kwargs}
        super().__init__(observation_space, action_space, num_tasks, **of_policy)
        self.own_actions: OwnActions | None = None
        network_kwargs = {**self.network_defaults(), **kwargs}
        self.q_net = self._network(network_kwargs)
        self.q_net_target = self._network(network_kwargs)
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        self.q_net_target.requires_grad_(False)
        self.q_net_target.eval()

    def _network(self, kwargs: Mapping[str, Any]) -> nn.Module:
        tasks, num_actions = self.rows.one_hot_size, int(self.action_space.n)  # type: ignore[attr-defined]
        if not self.has_features:
            network: nn.Module = self.make_network(self.rows.numbers, num_actions, tasks, **kwargs)
            return network
        extractor = self.make_features_extractor()
        head = self.make_network(extractor.features_dim + tasks, num_actions, tasks, **kwargs)
        return FeaturesQNetwork(self.rows, extractor, head, self.normalize_images)

    def make_network(
        self,
        observation_size: int,
        num_actions: int,
        num_tasks: int,
        embedding_dim: int = 8,
        net_arch: Sequence[int] = (256, 128),
        layer_norm: bool = True,
        activation_fn: type[nn.Module] = nn.ReLU,
        heads: str = "shared",
    ) -> Any:
        """Make the network. This is called twice: for the online network and for the target network."""
        return SharedQNetwork(
            observation_size, num_actions, num_tasks, embedding_dim, net_arch, layer_norm, activation_fn, heads
        )

    def forward(self, observation: Tensor, deterministic: bool = True) -> Tensor:
        """Greedy actions (N,) for rows (N, ...) of observations."""
        return self._predict(observation, deterministic)

    def _predict(  # type: ignore[override] # rows, which are no dictionaries
        self, observation: Tensor, deterministic: bool = True
    ) -> Tensor:
        if self.rows.is_flat:
            observation = observation.float()
        values: Tensor = self.q_net(observation)
        if self.own_actions is not None:
            values = self.own_actions.only(values, observation)
        first: int = self.action_space.start  # type: ignore[attr-defined]
        return values.argmax(1) + int(first)

    def load_acting(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of the online network, and give them to the target network, too."""
        super().load_acting(weights)
        self.q_net_target.load_state_dict(self.q_net.state_dict())


class MultiTaskCnnPolicy(MultiTaskQPolicy):
    """The `"CnnPolicy"` of `MultiTaskDQN`: a `MultiTaskQPolicy` on the features that `NatureCNN` makes of images."""

    extractor = NatureCNN


class MultiTaskInputPolicy(MultiTaskQPolicy):
    """The `"MultiInputPolicy"` of `MultiTaskDQN`: a `MultiTaskQPolicy` on the features of dictionaries."""

    extractor = CombinedExtractor


def named_classes(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the names of classes in place of the classes, as a file holds them.

    A class of the user's own has the name of its module before its own, so that it is not taken for a known one.
    """
    found = dict(policy_kwargs)
    for key, known in CLASSES.items():
        if isinstance(kind := found.get(key), type):
            is_known = known.get(kind.__name__) is kind
            found[key] = kind.__name__ if is_known else f"{kind.__module__}.{kind.__qualname__}"
    return found


def classes_of(policy_kwargs: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `named_classes`.

    Args:
        policy_kwargs: the arguments with names of classes.
        given: classes of the user's own, by the name of the argument.

    Raises:
        ValueError: a class is none of those that a file may name, and is not given.
    """
    found = dict(policy_kwargs)
    for key, known in CLASSES.items():
        name = found.get(key)
        if name is None:
            continue
        if key in given:
            found[key] = given[key]
        elif isinstance(name, str) and name in known:
            found[key] = known[name]
        else:
            shown = repr(name)[:60]
            raise ValueError(f"it has a {key} of its own, {shown}; give custom_objects={{'{key}': ...}}")
    return found
