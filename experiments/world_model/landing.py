"""A landing policy that flies inside the world model's roll-outs, beside the same policy in the game.

The policy needs the game's observation, which a roll-out does not have: a readout estimates it from what the model
knows. Inside, the policy acts on the estimates for its own roll-out; outside, it acts on the game's observations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from agents import load_agent
from envs import get_tasks, make_task_env
from experiments.program.flags import UsageError
from experiments.program.outputs import check_file, write_json
from experiments.program.run_files import read_config
from experiments.program.run_folder import MODEL_FILE
from experiments.world_model.config import LandingConfig
from experiments.world_model.figures import landing_figure
from experiments.world_model.frames import Features
from experiments.world_model.model import WorldModel
from experiments.world_model.readout import Readout, explained, known_of, shaped_return
from experiments.world_model.recording import ACTIONS, CARELESSNESS, LONGEST, fly
from experiments.world_model.saving import load_model

LEARNING_FLIGHTS = 16  # per task, from which the readout learns
STRIDE = 8  # frames from the start of one window to the start of the next
Policy = Callable[[NDArray[np.float32], int], int]  # from an observation and the index of its task to an action


@dataclass(frozen=True)
class Flights:
    """Windows of flights in the game, P of them of T frames.

    Attributes:
        frames: (P, T, C, H, W), from 0 to 1.
        observations: of the game, (P, T, 8).
        actions: the numbers of the actions, (P, T).
        tasks: the index of each window's task, (P,).
    """

    frames: Tensor
    observations: Tensor
    actions: Tensor
    tasks: Tensor


def compare(config: LandingConfig) -> dict[str, Any]:
    """Fly inside and outside, and write landing.json and landing.png into the folder of the run.

    Returns:
        The contents of landing.json.

    Raises:
        CheckpointError: the run has no readable model, or the policy's file is none.
        UsageError: the policy was trained on other tasks.
    """
    torch.set_num_threads(1)  # two threads are slower at these sizes
    model = load_model(config.run_dir / MODEL_FILE).model
    settings = read_config(config.run_dir)["settings"]
    tasks, frame_skip = tuple(settings["tasks"]), settings["frame_skip"]
    numbers, picture = config.run_dir / "landing.json", config.run_dir / "landing.png"
    for path in (numbers, picture):
        check_file(path)
    policy, length = pretrained(config, tasks), config.context + config.horizon
    learning = record(policy, tasks, frame_skip, LEARNING_FLIGHTS, length, config.seed, CARELESSNESS)
    flown = record(policy, tasks, frame_skip, config.flights, length, config.seed + 1, (0.0,))
    readout = Readout(known_of(model, learning.frames[:1], hot(learning.actions[:1]))[0].shape[-1])
    torch.manual_seed(config.seed)
    known = known_of(model, learning.frames, hot(learning.actions))[0]
    readout.fit(known.flatten(0, 1), learning.observations.flatten(0, 1), torch.Generator().manual_seed(config.seed))
    inside, chosen = fly_inside(model, readout, policy, flown, config.context)
    result = _compared(model, readout, flown, inside, chosen, config.context, frame_skip)
    write_json(numbers, result["numbers"])
    landing_figure(result["pairs"], picture)
    for name, value in result["numbers"]["correlation"].items():
        print(f"correlation of the {name} inside and outside: {value:.2f}")
    print(f"numbers in {numbers}, picture in {picture}")
    return result["numbers"]
