"""What is done to a task's environment before it is a column: vectors, stacked frames, padding, the task's one-hot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self, TypeVar, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation
from numpy.typing import NDArray

from mtrl.files import one_line
from mtrl.limits import check_number
from mtrl.rl.actions import ActionScale, number_of_actions
from mtrl.rl.observations import TASK, is_kept_as_bytes

__all__ = ["CommonShape", "PaddedTask", "StackedFrames", "TaskOneHot", "as_column"]

Action = TypeVar("Action")
Observation = NDArray[Any]
AnyEnv = gymnasium.Env[Any, Any]


class TaskOneHot(gymnasium.ObservationWrapper[Any, Action, Any]):
    """Adds a one-hot of the task to the observation.

    A vector is made longer: its shape changes from (n,) to (n + num_tasks,). Images and dictionaries stay as they are
    and get the one-hot beside them: the observation is a dictionary with the one-hot as the part `task`, and an image
    alone is its part `observation`. Networks join the one-hot to what the features extractor makes of the rest.

    Args:
        env: an environment whose observation space is a Box or a Dict.
        index: the position of the task in the one-hot, 0 <= index < num_tasks.
        num_tasks: the length of the one-hot.

    Raises:
        ValueError: the observation space is neither, or has a part `task` already, or `index` is out of range.
    """

    def __init__(self, env: gymnasium.Env[Any, Action], index: int, num_tasks: int) -> None:
        super().__init__(env)
        check_number("num_tasks", num_tasks, least=1, whole=True)
        check_number("index", index, least=0, most=num_tasks - 1, whole=True)
        space = env.observation_space
        self._is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        self.one_hot = np.zeros(num_tasks, cast(Any, space.dtype) if self._is_vector else np.float32)
        self.one_hot[index] = 1
        if isinstance(space, spaces.Box) and self._is_vector:
            self.observation_space = spaces.Box(
                np.concatenate((space.low, np.zeros_like(self.one_hot))),
                np.concatenate((space.high, np.ones_like(self.one_hot))),
                dtype=cast(Any, space.dtype),
            )
        elif isinstance(space, spaces.Box | spaces.Dict):
            parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
            if TASK in parts:
                raise ValueError(f"a one-hot of the task is called {TASK!r}, and the observations have such a part")
            self.observation_space = spaces.Dict({**parts, TASK: spaces.Box(0.0, 1.0, (num_tasks,), np.float32)})
        else:
            raise ValueError(f"a one-hot of the task needs observations in a Box or a Dict, not in {one_line(space)}")

    def observation(self, observation: Any) -> Any:
        """Add the one-hot to an observation."""
        if self._is_vector:
            if np.shape(observation) != self.env.observation_space.shape:
                raise ValueError(
                    f"an observation of shape {np.shape(observation)}, not {self.env.observation_space.shape}"
                )
            return np.concatenate((observation, self.one_hot))
        parts = observation if isinstance(observation, Mapping) else {"observation": observation}
        return {**parts, TASK: self.one_hot}


class StackedFrames(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Makes one image of S stacked ones: (S, H, W, C) becomes (H, W, S * C), and (S, C, H, W) becomes (S * C, H, W).

    `gymnasium.wrappers.FrameStackObservation` puts frames along an axis of their own, and networks take images with
    three axes. Where the channels are is decided as in Stable-Baselines3: theirs is the shortest axis of an image.

    Raises:
        ValueError: there are more channels than rows or columns, so that they would be taken for these.
    """

    def __init__(self, env: AnyEnv) -> None:
        super().__init__(env)
        box = cast(spaces.Box, env.observation_space)
        stack, *frame = box.shape
        self._channels_first = int(np.argmin(frame)) == 0
        channels, *sides = frame if self._channels_first else frame[::-1]
        if stack * channels > min(sides):
            raise ValueError(
                f"{stack} stacked frames of {tuple(frame)} have {stack * channels} channels, more than a side "
                "of the image: Stable-Baselines3 would not know them from rows; stack fewer frames"
            )
        self.observation_space = spaces.Box(
            self.observation(box.low), self.observation(box.high), dtype=cast(Any, box.dtype)
        )

    def observation(self, observation: Any) -> Observation:
        """The frames as one image."""
        frames = np.asarray(observation)
        if self._channels_first:
            return frames.reshape(-1, *frames.shape[2:])
        return np.moveaxis(frames, 0, 2).reshape(*frames.shape[1:3], -1)


class CheckedSteps(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Names what `step` of an environment gives wrongly, before other wrappers stumble over it."""

    def step(self, action: Any) -> Any:
        """As the environment's.

        Raises:
            ValueError: it does not give the five values that Gymnasium asks for, or the reward is no single number.
        """
        found = self.env.step(action)
        if not isinstance(found, tuple) or len(found) != 5:
            what = f"{len(found)} values" if isinstance(found, tuple) else f"a {type(found).__name__}"
            raise ValueError(
                f"step() gives {what}, not (observation, reward, terminated, truncated, info) as Gymnasium asks"
            )
        try:
            float(found[1])
        except (TypeError, ValueError):
            shown = one_line(repr(found[1]), 60)
            raise ValueError(f"the reward is {shown}; it must be a single number, such as float(reward)") from None
        return found


class CommonShape(NamedTuple):
    """The shape that several tasks of different shape are padded to."""

    observations: int | None
    """The length of the longest observation; None if observations are images or dictionaries, which are alike."""

    actions: int
    """The largest number of actions, or of numbers in an action."""

    is_continuous: bool
    """Whether an action consists of numbers within bounds."""

    @classmethod
    def of(cls, envs: Mapping[str, AnyEnv]) -> Self:
        """The common shape of the tasks that have these environments.

        Raises:
            ValueError: observations are no vectors and differ, or actions are neither all in Discrete nor all in a Box
                with bounds. The message names the task.
        """
        (first, example), *_ = envs.items()
        kind = type(example.action_space)
        for name, env in envs.items():
            own, others = one_line(env.action_space), one_line(example.action_space)
            if kind not in (spaces.Discrete, spaces.Box):
                raise ValueError(f"task {name} has actions in {own}; only those in Discrete or a Box can be padded")
            if type(env.action_space) is not kind:
                raise ValueError(f"task {name} has actions in {own} and task {first} in {others}; no agent takes both")
            if isinstance(env.action_space, spaces.Box):
                try:
                    ActionScale(env.action_space)
                except ValueError as error:
                    raise ValueError(f"task {name}: {error}") from None
        flat = {name: _is_vector(env.observation_space) for name, env in envs.items()}
        for name, env in envs.items():
            if not all(flat.values()) and env.observation_space != example.observation_space:
                own, others = one_line(env.observation_space), one_line(example.observation_space)
                raise ValueError(
                    f"only vectors are padded, but task {name} has observations in {own} and task {first} in {others}; "
                    "gymnasium.wrappers has FlattenObservation and ResizeObservation"
                )
        lengths = [cast(Any, env.observation_space).shape[0] for env in envs.values()] if all(flat.values()) else []
        actions = max(number_of_actions(env.action_space) for env in envs.values())
        return cls(max(lengths, default=None), actions, kind is spaces.Box)


def learned_shape(agent: Any) -> CommonShape | None:
    """The shape that the tasks of an agent were padded to; None if they were not padded."""
    if not agent.is_padded:
        return None
    space, actions = agent.observation_space, agent.action_space
    length = space.shape[0] - agent.one_hot_size if _is_vector(space) else None
    return CommonShape(length, number_of_actions(actions), isinstance(actions, spaces.Box))


class PaddedTask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives a task the shape of longer ones: zeros follow its observation, and it has actions that do not count.

    Args:
        env: an environment with Discrete actions, which may begin at any number and are counted from 0 here, or with
            actions in a Box with bounds, whose numbers go from -1 to 1 here.
        shape: the common shape.

    Attributes:
        own_actions: how many actions the task itself has, or how many numbers an action of it has.
    """

    def __init__(self, env: AnyEnv, shape: CommonShape) -> None:
        super().__init__(env)
        self.own_actions = number_of_actions(env.action_space)
        self._length = shape.observations
        if self._length is not None:
            self.observation_space = spaces.Box(-np.inf, np.inf, (self._length,), np.float32)
        self._scale = ActionScale(cast(spaces.Box, env.action_space)) if shape.is_continuous else None
        self.action_space = spaces.Discrete(shape.actions)
        if shape.is_continuous:
            self.action_space = spaces.Box(-1, 1, (shape.actions,), np.float32)

    def reset(self, **kwargs: Any) -> Any:
        """As the environment's, with the observation padded."""
        observation, info = self.env.reset(**kwargs)
        return self._padded(observation), info

    def step(self, action: Any) -> Any:
        """As the environment's, with the observation padded.

        Raises:
            ValueError: the task has no such action.
        """
        observation, *others = self.env.step(self._own(action))
        return (self._padded(observation), *others)

    def _own(self, action: Any) -> Any:
        """The action as the task itself takes it."""
        space = self.env.action_space
        if self._scale is not None:
            return self._scale(np.asarray(action)[: self.own_actions].reshape(cast(Any, space.shape)))
        if not 0 <= action < self.own_actions:
            raise ValueError(f"action {action} was taken in a task that has the actions 0 to {self.own_actions - 1}")
        return action + cast(spaces.Discrete, space).start

    def _padded(self, observation: Any) -> Any:
        if self._length is None:
            return observation
        own = np.asarray(observation, np.float32)
        if own.shape != self.env.observation_space.shape:
            raise ValueError(f"an observation of shape {own.shape}, not {self.env.observation_space.shape}")
        return np.concatenate((own, np.zeros(self._length - len(own), np.float32)))


def as_column(env: AnyEnv, shape: CommonShape | None = None) -> AnyEnv:
    """The environment with observations that agents take, padded to `shape` if it is given.

    Boxes stay as they are, except that stacks of images become one image. Discrete, MultiDiscrete, MultiBinary, Dict
    and Tuple become vectors, by Gymnasium's own flattening, unless they are a Dict with an image in it.

    Raises:
        ValueError: the observations cannot be made a vector.
    """
    space = env.observation_space
    if isinstance(space, spaces.Box) and space.shape:
        if is_kept_as_bytes(space) and len(space.shape) == 4:
            env = StackedFrames(env)
    elif not (isinstance(space, spaces.Dict) and any(map(_is_image, space.spaces.values()))):
        if any(map(_is_image, _leaves(space))):
            raise ValueError(
                f"an image inside {one_line(space)} can't be reached; let it be a part of a Dict of one level"
            )
        if not space.is_np_flattenable:
            raise ValueError(f"observations in {type(space).__name__} are not supported: they have no fixed size")
        env = FlattenObservation(env)
    return env if shape is None else PaddedTask(env, shape)


DISCRETE_ONLY = (
    "agents of Q-learning act in Discrete(n) only, for which gymnasium.wrappers.TransformAction can map numbers to "
    "other actions"
)


def remedy_for(kind: str, first: spaces.Space[Any], second: spaces.Space[Any]) -> str:
    """What can be done about columns with different spaces.

    Args:
        kind: `"action_space"` or `"observation_space"`.
        first: the space of one column.
        second: the space of another.
    """
    kinds = {isinstance(first, spaces.Box), isinstance(second, spaces.Box)}
    if kind == "action_space" and kinds == {True}:
        return "make_task_vec_env(..., pad=True), in commands --pad, brings them to one size and to bounds of -1 and 1"
    if kind == "action_space" and not (isinstance(first, spaces.Discrete) and isinstance(second, spaces.Discrete)):
        return DISCRETE_ONLY
    if kind == "observation_space" and not (_is_vector(first) and _is_vector(second)):
        return "images and dictionaries must be alike; gymnasium.wrappers has FlattenObservation and ResizeObservation"
    return (
        "make_task_vec_env(..., pad=True), in commands --pad, takes vectors that differ in length, bounds or dtype, "
        "and different actions in Discrete"
    )


def _is_vector(space: Any) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1


def _is_image(space: Any) -> bool:
    return isinstance(space, spaces.Box) and (len(space.shape) >= 3 or is_kept_as_bytes(space))


def _leaves(space: Any) -> Iterable[Any]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _leaves(part)
    else:
        yield space
