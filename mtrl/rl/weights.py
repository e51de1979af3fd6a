"""The online network of an agent alone, as one safetensors file: small, and readable by any tool that knows the format.

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

if TYPE_CHECKING:
    from mtrl.rl.saving import SavedAlgorithm

SUFFIX = ".safetensors"
LARGEST_FILE = 2**30  # bytes
KEY = "agent"
BOUNDS = ("observation_low", "observation_high")
TEXTS = ("agent", "settings", "task_names", "one_hot_size", "one_hot_places", "num_actions")


def write_weights(agent: SavedAlgorithm, path: str | Path) -> None:
    """Write the online network of `agent` to `path`, in one step.

    Raises:
        ValueError: the agent has a policy class of the user's own, or a balancer that was given as an object.
    """
    state = agent.saved_state()
    if "policy_class" in state or state["settings"]["balancer"] is None:
        raise ValueError("only an agent with a policy and a balancer that have names can be written as weights")
    network = "q_net."
    tensors = {name: tensor for name, tensor in state["policy"].items() if name.startswith(network)}
    tensors |= {name: torch.from_numpy(state[name].copy()) for name in BOUNDS}
    metadata = {KEY: json.dumps({name: state[name] for name in TEXTS})}
    with replacing(Path(path)) as file:
        file.write(safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata))


def read_weights(path: str | Path) -> dict[str, Any]:
    """What `write_weights` wrote, as a saved state whose target network is the online network.

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
        low, high = (tensors.pop(bound).numpy() for bound in BOUNDS)
        if not isinstance(state, dict) or state.keys() != set(TEXTS):
            raise ValueError("it does not describe its agent")
        state |= {part: tuple(state[part]) for part in ("task_names", "one_hot_places")}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot load weights {name}: it holds no agent ({one_line(error)})") from error
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"cannot load weights {name}: {one_line(reason)}") from error
    twin = {f"q_net_target.{key.removeprefix('q_net.')}": tensor.clone() for key, tensor in tensors.items()}
    return {**state, "observation_low": low, "observation_high": high, "policy": {**tensors, **twin}}
