"""A trained world model as a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from experiments.world_model.discriminator import PairDiscriminator
from experiments.world_model.frames import ModelSettings
from experiments.world_model.model import WorldModel
from mtrl import checkpoint
from mtrl.files import one_line

KIND = "world_model"


class Trained(NamedTuple):
    """A trained model, and the discriminator that was trained beside it."""

    model: WorldModel
    discriminator: PairDiscriminator


def save(path: Path, model: WorldModel, discriminator: PairDiscriminator) -> None:
    """Write a model and its discriminator to a file that `load_model` reads."""
    weights = {"weights": model.state_dict(), "discriminator": discriminator.state_dict()}
    checkpoint.save(path, {"kind": KIND, "model": asdict(model.settings), **weights})


def load_model(path: Path) -> Trained:
    """Load what `save` wrote.

    Raises:
        CheckpointError: the file is missing, is damaged, holds something else, or is of an earlier version.
    """
    state = checkpoint.load(path)
    if state.get("kind") != KIND:
        raise checkpoint.CheckpointError(f"cannot load model '{path}': it is no world model")
    if "discriminator" not in state:
        why = "it is of an earlier version, whose tokens were not spatial; train it anew"
        raise checkpoint.CheckpointError(f"cannot load model '{path}': {why}")
    try:
        settings = ModelSettings(**state["model"])
        model = WorldModel(settings, torch.zeros(settings.channels, settings.height, settings.width))
        model.load_state_dict(state["weights"])
        discriminator = PairDiscriminator(settings.channels)
        discriminator.load_state_dict(state["discriminator"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        problem = one_line(f"{type(error).__name__}: {error}")
        raise checkpoint.CheckpointError(f"cannot load model '{path}': {problem}") from None
    return Trained(model, discriminator)
