"""Loading a saved agent without knowing its kind."""

from __future__ import annotations

from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from agents.brc import BRC
from agents.independent_dqn import IndependentDQN
from mtrl.checkpoint import CheckpointError
from mtrl.rl.algorithm import MultiTaskAlgorithm
from mtrl.rl.dqn import MultiTaskDQN
from mtrl.rl.sac import MultiTaskSAC
from mtrl.rl.saving import load_state
from mtrl.rl.weights import SUFFIX, read_weights

_ALL: tuple[type[MultiTaskAlgorithm], ...] = (MultiTaskDQN, MultiTaskSAC, IndependentDQN, BRC)
KINDS = {kind.__name__: kind for kind in _ALL}


def load_agent(path: str | Path | BufferedIOBase, **kwargs: Any) -> MultiTaskAlgorithm:
    """The agent in the file `path`, as an object of the class that it was saved from.

    Args:
        path: the file, a saved agent (`.zip` may be left out) or weights alone (`.safetensors`).
        **kwargs: passed to the method `load` of that class, or `load_weights`.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no agent.
    """
    if isinstance(path, (str, Path)) and Path(path).suffix == SUFFIX:
        return _kind_of(read_weights(path), path).load_weights(path, **kwargs)
    return _kind_of(load_state(path), path).load(path, **kwargs)


def _kind_of(state: Mapping[str, Any], path: object) -> type[MultiTaskAlgorithm]:
    name = state.get("agent")
    if not (isinstance(name, str) and name in KINDS):
        raise CheckpointError(f"{str(path)!r} holds no agent; agents are {', '.join(KINDS)}")
    return KINDS[name]
