"""The device that a command is told to compute on."""

from __future__ import annotations

import torch

from experiments.program.flags import UsageError


def find_device(name: str) -> torch.device:
    """The device of this name: `cpu`, `cuda`, or `auto` for a GPU if there is one.

    Raises:
        UsageError: the name is `cuda`, and there is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is 'cuda', and PyTorch finds no GPU; choose cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
