"""The spaces of an agent in its file, as plain data and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtrl.rl.actions import number_of_actions

if TYPE_CHECKING:
    from mtrl.rl.saving import SavedAlgorithm

Described = dict[str, tuple[str, NDArray[Any], NDArray[Any]]]
"""The kind, the lowest and the highest values of each part of a space. A space that is no Dict has the one part ""."""


def described_spaces(agent: SavedAlgorithm) -> dict[str, Any]:
    """What a file says of an agent's observations and actions."""
    space, actions = agent.observation_space, agent.action_space
    of_observations: dict[str, Any] = {"observation_space": described_space(space)}
    if isinstance(space, spaces.Box):
        of_observations = {"observation_low": space.low, "observation_high": space.high}
    of_tasks = {"actions_of_tasks": agent.actions_of_tasks} if agent.is_padded else {}
    of_actions = {**of_observations, "num_actions": number_of_actions(actions), **of_tasks}
    if isinstance(actions, spaces.Box):
        return {**of_actions, "action_low": actions.low, "action_high": actions.high}
    assert isinstance(actions, spaces.Discrete)
    return {**of_actions, **({"first_action": int(actions.start)} if actions.start else {})}


def spaces_of(state: Mapping[str, Any]) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """The spaces of the agent that a file describes.

    Raises:
        KeyError: a bound is missing.
        ValueError: no space is described.
    """
    actions: spaces.Space[Any] = spaces.Discrete(state["num_actions"], start=state.get("first_action", 0))
    if "action_low" in state:
        actions = _leaf("Box", state["action_low"], state["action_high"])
    if "observation_space" in state:
        return space_from(state["observation_space"]), actions
    return space_from({"": ("Box", state["observation_low"], state["observation_high"])}), actions


def described_space(space: spaces.Space[Any]) -> Described:
    """The space as plain data and arrays."""
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    return {key: (type(leaf).__name__, *_bounds(leaf)) for key, leaf in parts.items()}


def space_from(described: Any) -> spaces.Space[Any]:
    """The space that `described_space` described.

    Raises:
        ValueError: it describes no space.
    """
    if not isinstance(described, dict) or not described:
        raise ValueError("the observation space is not described")
    parts: dict[str, spaces.Space[Any]] = {}
    for key, part in described.items():
        if type(key) is not str or not isinstance(part, tuple | list) or len(part) != 3:
            raise ValueError(f"the observation space's part {key!r} is not described")
        parts[key] = _leaf(*part)
    return parts[""] if list(parts) == [""] else spaces.Dict(parts)


def _bounds(space: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, np.int8), np.ones(space.shape, np.int8)
    start = np.asarray(space.start, np.int64)
    count = space.n if isinstance(space, spaces.Discrete) else space.nvec
    return start, np.asarray(start + count - 1, np.int64)


def _leaf(kind: Any, low: Any, high: Any) -> spaces.Space[Any]:
    if not all(isinstance(bound, np.ndarray) for bound in (low, high)) or low.shape != high.shape:
        raise ValueError("the bounds of the observation space are no arrays of one shape")
    if kind == "Box":
        return spaces.Box(low, high, dtype=low.dtype)
    if kind == "MultiBinary":
        return spaces.MultiBinary(low.shape)
    whole = all(bound.dtype == np.int64 for bound in (low, high)) and bool((high >= low).all())
    if not whole or kind not in ("Discrete", "MultiDiscrete") or (low.ndim != (kind == "MultiDiscrete")):
        raise ValueError(f"an observation space of the kind {str(kind)[:40]!r} is not described")
    if kind == "Discrete":
        return spaces.Discrete(int(high) - int(low) + 1, start=int(low))
    return spaces.MultiDiscrete(high - low + 1, start=low)
