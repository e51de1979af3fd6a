"""Loading a saved agent without knowing its kind."""

from __future__ import annotations

from io import BufferedIOBase
from pathlib import Path
from typing import Any

from agents.brc import BRC
from agents.independent_dqn import IndependentDQN
from mtrl.checkpoint import CheckpointError
from mtrl.rl.dqn import MultiTaskDQN
from mtrl.rl.saving import load_state

KINDS: dict[str, type[MultiTaskDQN]] = {kind.__name__: kind for kind in (MultiTaskDQN, IndependentDQN, BRC)}


def load_agent(path: str | Path | BufferedIOBase, **kwargs: Any) -> MultiTaskDQN:
    """The agent in the file `path`, as an object of the class that it was saved from.

    Args:
        path: the file; `.zip` may be left out.
        **kwargs: passed to the `load` method of that class.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no agent.
    """
    name = load_state(path).get("agent")
    if not (isinstance(name, str) and name in KINDS):
        raise CheckpointError(f"{str(path)!r} holds no agent; agents are {', '.join(KINDS)}")
    return KINDS[name].load(path, **kwargs)
