"""The number of parameters of the network of a run whose evaluation.json does not say it, as in earlier releases."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from agents import BroNet, IndependentQNetworks, SharedQNetwork

STATE_SIZE, NUM_ACTIONS = 8, 4  # of LunarLander, the only environment of these releases


def count_parameters(config: dict[str, Any]) -> int | None:
    """Trainable parameters of the network that a run's config.json describes.

    The network is built without memory, on PyTorch's meta device; the saved model is not needed.

    Args:
        config: the contents of config.json.

    Returns:
        The number, or None if the settings describe no network of this project.
    """
    try:
        with torch.device("meta"):
            network = _network(config["agent"], config["settings"])
    except (KeyError, TypeError, ValueError):  # settings of another project or of an older release
        return None
    return None if network is None else sum(parameter.numel() for parameter in network.parameters())


def _network(agent: str, settings: dict[str, Any]) -> nn.Module | None:
    aware = len(settings["tasks"]) if settings["variant"] == "aware" else 0
    sizes = (STATE_SIZE + aware, NUM_ACTIONS, aware)
    match agent:
        case "MultiTaskDQN":
            return SharedQNetwork(*sizes, settings["embedding_dim"], settings["hidden_dims"], settings["layer_norm"])
        case "IndependentDQN":
            return IndependentQNetworks(*sizes, settings["hidden_dims"], settings["layer_norm"])
        case "BRC":
            names = ("embedding_dim", "width", "depth", "num_bins", "v_max")
            return BroNet(*sizes, **{name: settings[name] for name in names})
    return None
