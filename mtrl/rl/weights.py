"""The network with which an agent acts, as one safetensors file: small, and readable by any tool that knows the format.

The file has the tensors of the network and the bounds of the observations, and in its metadata, under the key `agent`,
what the agent is: its class, settings, tasks and actions, as JSON. It holds neither optimizer nor target network.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from mtrl.checkpoint import CheckpointError
from mtrl.files import one_line, open_regular, replacing
from mtrl.rl.policies import CLASSES

if TYPE_CHECKING:
    from mtrl.rl.saving import SavedAlgorithm

SUFFIX = ".safetensors"
LARGEST_FILE = 2**30  # bytes
KEY = "agent"
BOUNDS = ("observation_low", "observation_high")
OF_ACTIONS = ("action_low", "action_high")
TEXTS = ("agent", "settings", "task_names", "one_hot_size", "one_hot_places", "num_actions")
SOMETIMES = ("policy_name", "first_action", "actions_of_tasks", "observation_kinds")


def write_weights(agent: SavedAlgorithm, path: str | Path) -> None:
    """Write the network with which `agent` acts to `path`, in one step.

    Raises:
        ValueError: the agent has a policy class, features extractor or activation of the user's own, or a balancer that
            was given as an object.
    """
    state = agent.saved_state()
    if "policy_class" in state or not agent.is_described:
        raise ValueError("only an agent with a policy and a balancer that have names can be written as weights")
    for key, known in CLASSES.items():
        if (name := state["settings"]["policy_kwargs"].get(key)) is not None and name not in known:
            raise ValueError(f"an agent with a {key} of its own, {name}, can't be written as weights; save it whole")
    prefix = f"{agent.policy.acts_by}."
    tensors = {name: tensor for name, tensor in state["policy"].items() if name.startswith(prefix)}
    if "observation_space" in state:
        parts = state["observation_space"]
        state["observation_kinds"] = {key: kind for key, (kind, _, _) in parts.items()}
        bounds = {f"{name}.{key}": part[place] for key, part in parts.items() for place, name in enumerate(BOUNDS, 1)}
    else:
        bounds = {name: state[name] for name in BOUNDS}
    bounds |= {name: state[name] for name in OF_ACTIONS if name in state}
    tensors |= {name: torch.from_numpy(bound.copy()) for name, bound in bounds.items()}
    metadata = {KEY: json.dumps({name: state[name] for name in (*TEXTS, *SOMETIMES) if name in state})}
    with replacing(Path(path)) as file:
        file.write(safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata))


def read_weights(path: str | Path) -> dict[str, Any]:
    """What `write_weights` wrote, as a saved state whose policy has the weights of the network that acts alone.

    Raises:
        CheckpointError: the file is missing, too large, damaged or holds no agent.
    """
    name = repr(str(path))
    try:
        with open_regular(Path(path), follow_link=True) as file:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
            content = file.read(LARGEST_FILE)
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        state = json.loads(header["__metadata__"][KEY])
        if not isinstance(state, dict) or not set(TEXTS) <= state.keys() <= {*TEXTS, *SOMETIMES}:
            raise ValueError("it does not describe its agent")
        lists = ("task_names", "one_hot_places", "actions_of_tasks")
        state |= {part: tuple(state[part]) for part in lists if part in state}
        state |= _bounds(tensors, state.pop("observation_kinds", None))
        state |= {name: tensors.pop(name).numpy() for name in OF_ACTIONS if name in tensors}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot load weights {name}: it holds no agent ({one_line(error)})") from error
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"cannot load weights {name}: {one_line(reason)}") from error
    return {**state, "policy": tensors}


def _bounds(tensors: dict[str, torch.Tensor], kinds: dict[str, str] | None) -> dict[str, Any]:
    """Take the bounds of the observations out of `tensors`, as a saved state has them.

    Args:
        tensors: the tensors of the file.
        kinds: the kinds of the observations' parts by their keys; None for one Box.
    """
    if kinds is None:
        return {bound: tensors.pop(bound).numpy() for bound in BOUNDS}
    parts = {key: (kind, *(tensors.pop(f"{bound}.{key}").numpy() for bound in BOUNDS)) for key, kind in kinds.items()}
    return {"observation_space": parts}
