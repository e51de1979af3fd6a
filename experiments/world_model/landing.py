"""A landing policy that flies inside the world model's roll-outs, beside the same policy in the game.

The policy needs the game's observation, which a roll-out does not have: a readout estimates it from what the model
knows. Inside, the policy acts on the estimates for its own roll-out; outside, it acts on the game's observations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

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
from experiments.training.config import PRETRAINED_DIR
from experiments.world_model.config import LandingConfig
from experiments.world_model.figures import landing_figure
from experiments.world_model.model import WorldModel
from experiments.world_model.readout import Readout, explained, known_of, shaped_return
from experiments.world_model.recording import ACTIONS, CARELESSNESS, LONGEST, fly
from experiments.world_model.saving import load_model

LEARNING_FLIGHTS = 16  # per task, from which the readout learns
STRIDE = 8  # frames from the start of one window to the start of the next


class Policy(Protocol):
    """A landing policy."""

    def __call__(self, observation: NDArray[np.float32], task: int) -> int:
        """The action for the game's observation (8,) in the task of that index."""
        ...


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
    torch.manual_seed(config.seed)
    known = known_of(model, learning.frames, hot(learning.actions))[0]
    readout = Readout(known.shape[-1])
    readout.fit(known.flatten(0, 1), learning.observations.flatten(0, 1), torch.Generator().manual_seed(config.seed))
    inside, chosen = fly_inside(model, readout, policy, flown, config.context)
    with torch.no_grad():
        known = known_of(model, flown.frames, hot(flown.actions))[0]
        result, pairs = _compared(readout, known, flown, inside, chosen, config.context, frame_skip)
    write_json(numbers, result)
    landing_figure(pairs, picture)
    print(f"{result['windows']} flights of {result['frames']} frames inside the model and in the game:")
    for name, value in result["correlation"].items():
        print(f"{name}: r = {value:.2f}")
    print(f"numbers in {numbers}, picture in {picture}")
    return result


def pretrained(config: LandingConfig, tasks: tuple[str, ...]) -> Policy:
    """The landing policy that comes with the project.

    Raises:
        CheckpointError: there is no such file.
        UsageError: it was trained on other tasks.
    """
    agent = load_agent(PRETRAINED_DIR / f"{config.policy}.safetensors", device="cpu")
    names = list(agent.task_names)
    if missing := [task for task in tasks if task not in names]:
        raise UsageError(f"the policy {config.policy!r} was trained on {', '.join(names)}, not on {', '.join(missing)}")
    places = np.eye(len(names), dtype=np.float32)[[names.index(task) for task in tasks]]

    def choose(observation: NDArray[np.float32], task: int) -> int:
        seen = np.concatenate([observation, places[task]]) if agent.variant == "aware" else observation
        return int(agent.predict(seen.astype(np.float32), deterministic=True)[0])

    return choose


def record(
    policy: Policy,
    tasks: tuple[str, ...],
    frame_skip: int,
    flights: int,
    length: int,
    seed: int,
    carelessness: tuple[float, ...],
) -> Flights:
    """Windows of `length` frames of flights in the game.

    Args:
        policy: who flies.
        tasks: the names of the tasks.
        frame_skip: environment steps from one frame to the next.
        flights: the number of flights per task.
        length: frames of a window. Windows begin every 8 frames.
        seed: the seed of the flights.
        carelessness: shares of random actions, for one flight each in turn.

    Raises:
        UsageError: no flight has that many frames.
    """
    frames, observations, actions, of_tasks = [], [], [], []
    for index, task in enumerate(get_tasks(tasks)):
        env, rng = make_task_env(task, render_mode="rgb_array"), np.random.default_rng((seed, index))
        pilot = partial(policy, task=index)
        try:
            for number in range(flights):
                share = carelessness[number % len(carelessness)]
                moments = list(fly(env, rng, frame_skip, share, LONGEST, pilot))
                for start in range(0, len(moments) - length + 1, STRIDE):
                    window = moments[start : start + length]
                    frames.append(np.stack([moment.frame for moment in window]))
                    observations.append(np.stack([moment.observation for moment in window]))
                    actions.append([moment.action for moment in window])
                    of_tasks.append(index)
        finally:
            env.close()
    if not frames:
        raise UsageError(f"no flight has {length} frames; give a shorter --horizon")
    pixels = torch.from_numpy(np.stack(frames)).movedim(-1, 2).float().div_(255)
    return Flights(
        pixels, torch.from_numpy(np.stack(observations)).float(), torch.tensor(actions), torch.tensor(of_tasks)
    )


def hot(actions: Tensor) -> Tensor:
    """One-hot actions (..., A) from their numbers."""
    return one_hot(actions, ACTIONS).float()


@torch.no_grad()
def fly_inside(
    model: WorldModel, readout: Readout, policy: Policy, flown: Flights, context: int
) -> tuple[Tensor, Tensor]:
    """Fly on inside the model after the first `context` frames of each window.

    Returns:
        The readout's estimates at the last frame of the context and at each frame after it, (P, L + 1, 8); and the
        numbers of the actions that led to these frames, (P, L).
    """
    frames, actions = flown.frames[:, :context], hot(flown.actions[:, :context])
    known, states = known_of(model, frames, actions)
    state, before = states[:, -1], model.trunk(frames[:, -1])
    estimates, chosen = [readout(known[:, -1])], [flown.actions[:, context - 1]]
    for step in range(context, flown.frames.shape[1]):
        frame = model.decoder(model.prior(state).expected, before).clamp(0, 1)
        seen, slots, _ = model.look(frame)
        summary = model.summarise(slots, seen, before)
        estimates.append(readout(torch.cat([state, summary], -1)))
        if step + 1 < flown.frames.shape[1]:
            pairs = zip(estimates[-1].numpy(), flown.tasks.tolist(), strict=True)
            chosen.append(torch.tensor([policy(observation, task) for observation, task in pairs]))
            state, before = model.advance(state, summary, hot(chosen[-1])), seen
    return torch.stack(estimates, 1), torch.stack(chosen, 1)


def _compared(
    readout: Readout, known: Tensor, flown: Flights, inside: Tensor, chosen: Tensor, context: int, frame_skip: int
) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """The numbers of landing.json, and the pairs (inside, outside) that are correlated.

    Args:
        readout: the readout.
        known: what the model knows at each true frame of the windows, (P, T, known).
        flown: the windows.
        inside: the estimates from `fly_inside`.
        chosen: the actions from `fly_inside`.
        context: the number of frames of the game that the model was given.
        frame_skip: environment steps from one frame to the next.
    """
    outside, taken = flown.observations[:, context - 1 :], flown.actions[:, context - 1 : -1]
    pairs = {
        "way across": (inside[:, -1, 0] - inside[:, 0, 0], outside[:, -1, 0] - outside[:, 0, 0]),
        "way down": (inside[:, -1, 1] - inside[:, 0, 1], outside[:, -1, 1] - outside[:, 0, 1]),
        "return": (shaped_return(inside, chosen, frame_skip), shaped_return(outside, taken, frame_skip)),
    }
    # A guess without a model: the craft keeps the speed that it has at the end of the context.
    guesses = {"way across": outside[:, 0, 2], "way down": outside[:, 0, 3]}
    return {
        "windows": len(inside),
        "frames": inside.shape[1] - 1,
        "correlation": {name: _correlation(*pair) for name, pair in pairs.items()},
        "correlation_of_the_speed_at_the_start": {
            name: _correlation(guess, pairs[name][1]) for name, guess in guesses.items()
        },
        "mean_return": {"inside": float(pairs["return"][0].mean()), "outside": float(pairs["return"][1].mean())},
        "same_actions": float((chosen == taken)[:, 1:].float().mean()),
        "readout_explains": explained(readout(known).flatten(0, 1), flown.observations.flatten(0, 1)),
    }, pairs


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])
