"""The presets of `--preset`: where the defaults of a training come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from experiments.training.algorithms import DQNTrainConfig

Config = TypeVar("Config", bound=DQNTrainConfig)

# The numbers of the notes that this project grew from, in the terms of this project: 500 episodes per task on one
# environment each, epsilon and target network by the episode, one update per step. The 1,500,000 steps are no limit,
# because 500 episodes of each task end before.
NOTES_PRESET: dict[str, Any] = {
    "preset": "notes",
    "total_steps": 1_500_000,
    "episodes_per_task": 500,
    "envs_per_task": 1,
    "log_interval": 10,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 6_000,
    "learning_rate": 5e-4,
    "learning_rate_decay": 0.0,
    "gamma": 0.99,
    "n_step": 1,
    "gradient_steps": 1,
    "exploration_initial_eps": 1.0,
    "exploration_final_eps": 0.01,
    "exploration_diversity": 0.0,
    "exploration_decay": 0.995,
    "tau": 1.0,
    "target_update_interval": 10,
    "target_update_unit": "episodes",
    "embedding_dim": 8,
    "hidden_dims": (256, 128),
    "layer_norm": False,
    "huber_delta": 1.0,
    "memory_angle": 0.0,
}
LITERAL_PRESET: dict[str, Any] = {
    "preset": "notes-literal",
    "tasks": ("Standard", "WindyUngated", "Heavy"),
    "double_q": False,
}


def presets(
    config_type: type[Config], without: Sequence[str] = (), literal: Mapping[str, Any] | None = None
) -> dict[str, Config]:
    """The presets of a method by name: the defaults of its fields, the notes' numbers, and the notes' experiment.

    Args:
        config_type: the settings of the method.
        without: names of the notes' numbers that do not apply to the method.
        literal: what the notes' experiment sets of the method's own settings. Default: nothing.
    """
    notes = {name: value for name, value in NOTES_PRESET.items() if name not in without}
    as_described = {**notes, **LITERAL_PRESET, **(literal or {})}
    return {"default": config_type(), "notes": config_type(**notes), "notes-literal": config_type(**as_described)}
