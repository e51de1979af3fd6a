"""Checks of what a file, which a stranger may have written, says of an agent, before the agent is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mtrl.limits import check_integer

MOST_TASKS = 1_000  # in a file; the same limit holds for actions

# The parts of a saved model that say what the agent is, and their types.
DESCRIPTION: dict[str, type] = {
    "settings": dict,
    "task_names": tuple,
    "one_hot_size": int,
    "num_actions": int,
    "policy": dict,
}
# The parts that say how far it has learned.
PROGRESS = ("progress", "optimizer", "balancer")


def check_description(state: Mapping[str, Any], settings: Iterable[str]) -> None:
    """Check what a file that a stranger may have written says of an agent, before anything is made from it.

    Args:
        state: the contents of the file.
        settings: names of the settings that the file may hold.

    Raises:
        KeyError: a part is missing.
        ValueError: a part has the wrong type, an unknown name or an impossible size.
    """
    for name, kind in DESCRIPTION.items():
        if type(state[name]) is not kind:
            raise ValueError(f"{name} is a {type(state[name]).__name__}, not a {kind.__name__}")
    if unknown := state["settings"].keys() - set(settings):
        raise ValueError(f"unknown settings: {', '.join(map(repr, unknown))}")
    names, num_actions = state["task_names"], state["num_actions"]
    for part in ("one_hot_places", "actions_of_tasks"):
        if type(state.get(part, ())) is not tuple or not all(type(number) is int for number in state.get(part, ())):
            raise ValueError(f"{part} is no tuple of integers")
    if not all(isinstance(task, str) for task in names) or len(set(names)) < len(names):
        raise ValueError("its tasks are not distinct names")
    check_integer("number of tasks", len(names), 1, MOST_TASKS)
    check_integer("one_hot_size", state["one_hot_size"], 0, MOST_TASKS)
    check_integer("num_actions", num_actions, 1, MOST_TASKS)
    check_integer("first_action", state.get("first_action", 0), -(2**31), 2**31)
    actions = state.get("actions_of_tasks", (num_actions,) * len(names))
    if len(actions) != len(names) or not all(1 <= count <= num_actions for count in actions):
        raise ValueError(f"it has no number of actions from 1 to {num_actions} for each task")


def check_progress(state: Mapping[str, Any], progress: Mapping[str, type]) -> None:
    """Check what a file says of how far an agent had learned.

    Args:
        state: the contents of the file.
        progress: names and types of the attributes that the file must hold.

    Raises:
        KeyError: a part is missing.
        ValueError: a part has the wrong type or an unknown name.
    """
    for name in PROGRESS:
        if type(state[name]) is not dict:
            raise ValueError(f"{name} is a {type(state[name]).__name__}, not a dict")
    if unknown := state["progress"].keys() - set(progress):
        raise ValueError(f"unknown progress: {', '.join(map(repr, unknown))}")
    for name, kind in progress.items():
        if type(value := state["progress"][name]) is not kind:
            raise ValueError(f"{name} is a {type(value).__name__}")
