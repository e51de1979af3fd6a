"""A check of the first observation of a task, before anything is learned or written."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from mtrl.files import one_line
from mtrl.rl.tasks import AnyTask


def check_first_observation(env: gymnasium.Env[Any, Any], task: AnyTask) -> None:
    """Reset the environment, and check that its observation fits its observation space.

    The dtype of numbers does not count, nor do values that leave a Box by no more than rounding does.

    Raises:
        ValueError: it does not fit, or the environment can't be reset. The message is one line that names the task.
    """
    try:
        found = env.reset(seed=0)
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"the environment of task {task.name!r} can't be reset: {reason}") from error
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        what = f"a {type(found).__name__}"
        if isinstance(found, tuple):
            what += f" of {', '.join(type(part).__name__ for part in found)}"
        raise ValueError(f"reset() of task {task.name!r} gives {what}, not (observation, info: dict) as Gymnasium asks")
    for kind in ("observation_space", "action_space"):
        if not isinstance(given := getattr(env, kind, None), spaces.Space):
            what = "no" if given is None else f"{one_line(repr(given), 60)} as its"
            raise ValueError(f"the environment of task {task.name!r} has {what} {kind}; it must be of gymnasium.spaces")
    observation, space = found[0], env.observation_space
    if isinstance(space, spaces.Box):
        if np.shape(observation) != space.shape:
            shape = np.shape(observation)
            raise ValueError(f"an observation of task {task.name!r} has the shape {shape}; its space is {space}")
        value = np.asarray(observation, np.float64)
        slack = 1e-5 * np.maximum(1.0, np.abs(value))
        fits = bool(((value >= space.low - slack) & (value <= space.high + slack)).all())
    else:
        fits = space.contains(observation)
    if not fits:
        shown = one_line(observation, longest=100)
        raise ValueError(f"the observation {shown} of task {task.name!r} is not in its space, {space}")
