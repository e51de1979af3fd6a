"""An agent to a file and back, without pickle, and the checks of files that a stranger may have written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq
from stable_baselines3.common.utils import get_device

from mtrl import checkpoint
from mtrl.balancers import Balancer
from mtrl.files import one_line
from mtrl.limits import at_most, check_names
from mtrl.rl.policies import CLASSES, MultiTaskPolicy, classes_of, named_classes
from mtrl.rl.replay import TaskReplayBuffer
from mtrl.rl.saved_checks import check_description, check_progress
from mtrl.rl.saved_spaces import described_spaces, spaces_of
from mtrl.rl.settings import ReplaySettings
from mtrl.rl.training_state import set_training_state, training_state
from mtrl.rl.update import Update
from mtrl.rl.weights import read_weights, write_weights

# What agents did before there were settings for it, for files that lack them.
BEFORE: dict[str, Any] = {"memory_angle": 0.0, "value_normalization": "none"}


class SavedAlgorithm(OffPolicyAlgorithm):
    """The part of `MultiTaskAlgorithm` that saves and loads; see there for the attributes."""

    settings_type: ClassVar[type[ReplaySettings]] = ReplaySettings
    progress: ClassVar[dict[str, type]] = {
        "num_timesteps": int,
        "_episode_num": int,
        "_n_updates": int,
        "_current_progress_remaining": float,
    }
    """Attributes that a saved model holds, beside its parts, and their types."""
    of_balancers: ClassVar[tuple[str, ...]] = ("balancer", "balancer_kwargs")
    """The arguments of the constructor that give the balancers, each followed by its own arguments."""
    parameters: ClassVar[dict[str, str]] = {
        "policy": "policy",
        "policy.optimizer": "optimizer",
        "balancer": "balancer",
    }
    """What `get_parameters` returns: attributes of the agent, and their names in a saved model."""

    policy: MultiTaskPolicy
    settings: ReplaySettings
    task_names: tuple[str, ...]
    actions_of_tasks: tuple[int, ...]
    is_padded: bool
    one_hot_places: tuple[int, ...]
    one_hot_size: int
    column_counts: tuple[int, ...]  # of each task
    balancer: Balancer
    balancer_name: str | None
    balancer_kwargs: dict[str, Any]
    update: Update
    replay_buffer: TaskReplayBuffer  # type: ignore[assignment] # not SB3's: it has a task axis
    guidance_buffer: TaskReplayBuffer | None
    exploration_generator: np.random.Generator

    def save(
        self,
        path: str | Path | BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Write networks, optimizer, balancer and settings to one zip file without pickle, atomically.

        The replay is not part of it; see `save_replay_buffer`. If the learning rate is a function, its present value
        is saved. `exclude` and `include` have no effect: there is nothing to choose from.

        Raises:
            ValueError: the balancer was given as an object, which the file could not describe.
        """
        if not self.is_described:
            raise ValueError("a model whose balancer was given as an object can't be saved: give its name instead")
        checkpoint.save(_model_path(path), self.saved_state())

    def saved_state(self) -> dict[str, Any]:
        """All that `save` writes."""
        # Some settings are attributes of Stable-Baselines3, too, which a user may have changed there.
        settings = {name: vars(self).get(name, value) for name, value in asdict(self.settings).items()}
        if callable(self.learning_rate):
            settings["learning_rate"] = self.lr_schedule(self._current_progress_remaining)
        settings["train_freq"] = cast(TrainFreq, self.train_freq).frequency
        arguments = {"policy_kwargs": named_classes(self.policy_kwargs), "verbose": self.verbose, "seed": self.seed}
        return {
            "agent": type(self).__name__,
            **self._described_policy(),
            "settings": settings | self.balancer_arguments() | arguments,
            "task_names": self.task_names,
            "one_hot_size": self.one_hot_size,
            "one_hot_places": self.one_hot_places,
            **described_spaces(self),
            "progress": {name: getattr(self, name) for name in self.progress},
            "policy": self.policy.state_dict(),
            "optimizer": self.policy.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            **self.update.saved_state(),
        }

    def balancer_arguments(self) -> dict[str, Any]:
        """The balancers' names, which are None if they were given as objects, and arguments, as a file holds them."""
        return dict(zip(self.of_balancers, (self.balancer_name, self.balancer_kwargs), strict=True))

    @property
    def balancers(self) -> tuple[Balancer, ...]:
        """All balancers of the agent."""
        return (self.balancer,)

    @property
    def is_described(self) -> bool:
        """Whether a file could describe the agent: all balancers have been given by name."""
        return None not in self.balancer_arguments().values()

    def _described_policy(self) -> dict[str, str]:
        """The policy's name, if it is another than `"MlpPolicy"`, or the name of a class of the user's own."""
        for name, kind in self.policy_aliases.items():
            if self.policy_class is kind:
                return {} if name == "MlpPolicy" else {"policy_name": name}
        return {"policy_class": self.policy_class.__name__}

    def load_saved_state(self, state: Mapping[str, Any]) -> None:
        """Restore what the agent had learned when `saved_state` returned `state`."""
        self.policy.load_state_dict(state["policy"])
        self.policy.optimizer.load_state_dict(state["optimizer"])
        self.balancer.load_state_dict(state["balancer"])
        for name in self.progress:
            setattr(self, name, state["progress"][name])
        self.update.load_saved_state(state)

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
            device: where the networks go.
            custom_objects: may hold a `policy_class`, a `features_extractor_class` and an `activation_fn`, for a model
                that was made with a class of the user's own. Nothing else, because nothing is unpickled.
            print_system_info: ignored.
            force_reset: ignored: the first `learn` always resets the environment.
            **kwargs: settings to change, such as `learning_rate=1e-4`, and further arguments of the constructor. The
                model keeps its balancer and network. A `tensorboard_log` is not saved, because it is a folder of the
                machine that the model was made on: give it here again.

        Raises:
            CheckpointError: the file is missing, damaged or no model of this class, or its parts do not fit together,
                or a setting in it is unknown or out of its limits, or `kwargs` would change its balancer or network. A
                network that would have more parameters than the
                file has weights is refused before it is made.
            ValueError: `env` does not fit the model.
        """
        objects = dict(custom_objects or {})
        if settings := sorted(objects.keys() & cls.known_settings()):
            raise ValueError(f"{settings[0]} is no custom object here; give it as load(..., {settings[0]}=...)")
        check_names("custom object", objects, ["policy_class", *CLASSES])
        state = load_state(path)
        name, device = repr(str(path)), get_device(device)
        if (kind := state.get("agent", "something else")) != cls.__name__:
            raise checkpoint.CheckpointError(f"{name} holds {one_line(kind)}, not a {cls.__name__}")
        try:
            agent = cls._from_state(state, device, kwargs, objects)
        except Exception as error:  # a stranger may have written anything
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise checkpoint.CheckpointError(f"cannot load agent {name}: {one_line(reason)}") from error
        if env is not None:
            agent.set_env(env)
        return agent

    @classmethod
    def _from_state(
        cls, state: Mapping[str, Any], device: torch.device, changes: Mapping[str, Any], objects: Mapping[str, Any]
    ) -> Self:
        """The agent whose `saved_state` was `state`, with `changes` in place of its settings of the same names."""
        check_description(state, cls.known_settings())
        check_progress(state, cls.progress)
        saved = {
            **BEFORE,
            **state["settings"],
            "policy_kwargs": classes_of(state["settings"].get("policy_kwargs") or {}, objects),
        }
        for name in (*cls.of_balancers, "policy_kwargs", "value_normalization"):
            if name in changes and changes[name] != saved.get(name):
                raise ValueError(f"{name} can't be changed when a model is loaded; make a new agent for that")
        own = state.get("policy_class")
        if own is not None and "policy_class" not in objects:
            raise ValueError(f"it has a policy of its own, {own}; give custom_objects={{'policy_class': {own}}}")
        number = sum(weight.numel() for weight in state["policy"].values())
        agent = cls._made_from(state, device, changes, objects, number // 2)  # half are those of target networks
        agent.load_saved_state(state)
        return agent

    @classmethod
    def known_settings(cls) -> set[str]:
        """The names of the settings that a file may hold."""
        arguments = (*cls.of_balancers, "policy_kwargs", "verbose", "seed")
        return {*arguments, *(field.name for field in fields(cls.settings_type))}

    @classmethod
    def _made_from(
        cls,
        state: Mapping[str, Any],
        device: torch.device,
        changes: Mapping[str, Any],
        objects: Mapping[str, Any],
        most_parameters: int,
    ) -> Self:
        """An agent like the one in `state`, as it is before it has learned anything.

        A network of more than `most_parameters` is refused before it is made.
        """
        policy = objects.get("policy_class", state.get("policy_name", "MlpPolicy"))
        policy_kwargs = classes_of(state["settings"].get("policy_kwargs") or {}, objects)
        settings = {**BEFORE, **state["settings"], **changes, "policy_kwargs": policy_kwargs}
        agent = cls(policy, None, device=device, _init_setup_model=False, **settings)  # type: ignore[call-arg,arg-type]
        agent.observation_space, agent.action_space = spaces_of(state)
        agent.task_names = state["task_names"]
        agent.actions_of_tasks = state.get("actions_of_tasks", (state["num_actions"],) * len(agent.task_names))
        agent.is_padded = "actions_of_tasks" in state
        agent.one_hot_size = state["one_hot_size"]
        in_order = tuple(range(len(agent.task_names))) if agent.one_hot_size else ()
        agent.one_hot_places = state.get("one_hot_places", in_order)
        agent.n_envs = len(agent.task_names)
        agent.column_counts = (1,) * agent.n_envs
        with at_most(most_parameters):
            agent._setup_model()
        return agent

    def save_weights(self, path: str | Path) -> None:
        """Write the network that acts alone to a safetensors file, for others to play it: a few bytes a parameter.

        Raises:
            ValueError: the agent has a policy class, features extractor or activation of the user's own, or a balancer
                that was given as an object.
        """
        write_weights(self, path)

    @classmethod
    def load_weights(cls, path: str | Path, device: torch.device | str = "auto") -> Self:
        """An agent with the network that `save_weights` wrote, ready to predict; its optimizer and balancer are new.

        Raises:
            CheckpointError: the file is missing, damaged, or holds no network of this class.
        """
        name, state = repr(str(path)), read_weights(path)
        if (kind := state["agent"]) != cls.__name__:
            raise checkpoint.CheckpointError(f"{name} holds {one_line(kind)}, not a {cls.__name__}")
        try:
            check_description(state, cls.known_settings())
            number = sum(weight.numel() for weight in state["policy"].values())
            agent = cls._made_from(state, get_device(device), {}, {}, 2 * number)  # critics may be larger than actors
            agent.policy.load_acting(state["policy"])
            if not all(bool(weight.isfinite().all()) for weight in agent.policy.parameters()):
                raise ValueError("a weight is not finite")
        except Exception as error:  # a stranger may have written anything
            raise checkpoint.CheckpointError(f"cannot load weights {name}: {one_line(error)}") from error
        return agent

    def set_parameters(
        self,
        load_path_or_dict: str | Path | BufferedIOBase | Mapping[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take the networks, optimizer and balancer of a saved model, or of what `get_parameters` returned.

        Raises:
            CheckpointError: the file is missing, damaged or no model.
            ValueError: the parameters do not fit this model, or are those of a model with other tasks.
        """
        if not isinstance(load_path_or_dict, Mapping):
            state = load_state(load_path_or_dict)
            self._check_tasks(state, "model")
            if missing := [part for part in self._parameters.values() if part not in state]:
                raise checkpoint.CheckpointError(f"{str(load_path_or_dict)!r} has no {missing[0]}: it is no model")
            load_path_or_dict = {name: state[part] for name, part in self._parameters.items()}
        super().set_parameters(dict(load_path_or_dict), exact_match, device)

    def save_replay_buffer(self, path: str | Path | BufferedIOBase) -> None:
        """Write the replay to a file without pickle."""
        state = {"replay": self.replay_buffer.state_dict(), "task_names": self.task_names}
        if self.guidance_buffer is not None:
            state["guidance"] = self.guidance_buffer.state_dict()
        checkpoint.save(path, state)

    def load_replay_buffer(self, path: str | Path | BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Restore what `save_replay_buffer` wrote; `truncate_last_traj` has no effect.

        Raises:
            CheckpointError: the file is missing, damaged, or holds no replay.
            ValueError: the replay has another shape or other tasks, or is malformed. Nothing has changed then.
        """
        state = checkpoint.load(path)
        if "replay" not in state:
            raise checkpoint.CheckpointError(f"{str(path)!r} holds no replay")
        self._check_tasks(state, "replay")
        self.replay_buffer.check_state(state["replay"])
        if self.guidance_buffer is not None and "guidance" in state:
            self.guidance_buffer.load_state_dict(state["guidance"])
        self.replay_buffer.load_state_dict(state["replay"])

    def training_state(self) -> dict[str, Any]:
        """All that the rest of a training depends on, between two rollouts, except for the environments and the logger.

        Unlike a saved model, this holds the replay, every generator of the agent and the unfinished statistics.
        """
        return training_state(cast(Any, self))

    def set_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned, in an agent made with the same arguments whose `learn` has begun.

        Call this from a callback's `_on_training_start`, because it replaces what `learn` sets up.

        Raises:
            ValueError: the state is that of another agent, or malformed.
        """
        set_training_state(cast(Any, self), state)

    @property
    def exploration_generator_state(self) -> dict[str, Any]:
        """The place of the generator that explores in its sequence."""
        return dict(self.exploration_generator.bit_generator.state)

    def _check_tasks(self, state: Mapping[str, Any], what: str) -> None:
        """Refuse a file that says that it is of other tasks."""
        names = state.get("task_names", self.task_names)
        if names != self.task_names:
            raise ValueError(f"the tasks of the {what} are {one_line(names)}, not {', '.join(self.task_names)}")

    @property
    def _parameters(self) -> dict[str, str]:
        """`parameters`, with the units of the values, without which the weights of networks say nothing."""
        units = {} if self.update.value_scales is None else {"update.value_scales": "value_scales"}
        return {**self.parameters, **units}

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return [*self._parameters], []


def load_state(path: str | Path | BufferedIOBase) -> dict[str, Any]:
    """What `save` wrote into a file; `.zip` may be left out."""
    as_given = not isinstance(path, (str, Path)) or Path(path).exists()
    return checkpoint.load(path if as_given else _model_path(str(path)))


def _model_path(path: str | Path | BufferedIOBase) -> str | Path | BufferedIOBase:
    """`path` with `.zip`, as Stable-Baselines3 adds it to a name without an ending."""
    return f"{path}.zip" if isinstance(path, (str, Path)) and not Path(path).suffix else path
