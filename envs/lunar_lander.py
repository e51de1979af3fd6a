"""Gymnasium environments made from a task."""

from collections.abc import Iterable
from typing import Any, SupportsFloat, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.box2d.lunar_lander import LunarLander
from numpy.typing import NDArray

from envs.box2d import free_shapes
from envs.tasks import DEFAULT_TASKS, LunarLanderTask, TaskLike, get_task, get_tasks, task_spec

__all__ = ["BASE_ID", "Action", "Observation", "TaskEnv", "TaskOneHot", "TaskPhysics", "make_task_env", "variants"]

BASE_ID = "LunarLander-v3"
"""The Gymnasium environment that the tasks change; record it, and the gymnasium and box2d versions, with results."""

free_shapes()

variants = ("aware", "blind")
"""`aware` observations end with a one-hot of the task, `blind` ones are the 8 state values alone."""

Observation = NDArray[np.float32]  # (8,) blind, (8 + T,) aware
Action = int | np.int64  # 0 nothing, 1 left engine, 2 main engine, 3 right engine
TaskEnv = gymnasium.Env[Observation, Action]


class TaskPhysics(gymnasium.Wrapper[Observation, Action, Observation, Action]):
    """Applies a task's gravity, mass and gusts to LunarLander. Its own wind is a matter of the constructor.

    Args:
        env: `LunarLander-v3`, wrapped or not.
        task: the physics; readable as `task`, through further wrappers by `get_wrapper_attr("task")` and in
            Stable-Baselines3 by `vec_env.get_attr("task")`.
    """

    def __init__(self, env: TaskEnv, task: LunarLanderTask) -> None:
        super().__init__(env)
        self.task = task
        self.game = cast(LunarLander, env.unwrapped)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in the task's physics."""
        # The constructor refuses gravity below -12, but reset() builds a new world with this attribute's value and
        # takes the episode's first step in it: set beforehand, gravity is right from that step on.
        self.game.gravity = self.task.gravity
        observation, info = self.env.reset(seed=seed, options=options)
        if self.task.mass_scale != 1.0:
            for body in (self.game.lander, *self.game.legs):
                for fixture in body.fixtures:
                    fixture.density *= self.task.mass_scale
                body.ResetMassData()
        return observation, info

    def step(self, action: Action) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Blow the gust, then step."""
        task, game = self.task, self.game
        assert game.lander is not None, "call reset() before step()"
        if task.gust_power and not (task.gust_gated and any(leg.ground_contact for leg in game.legs)):
            # Drawn from the environment's own generator, so that the seed given to reset() reproduces the gusts.
            gust = game.np_random.uniform(-task.gust_power, task.gust_power)
            game.lander.ApplyForceToCenter((gust, 0.0), True)
        return self.env.step(action)


class TaskOneHot(gymnasium.ObservationWrapper[Observation, Action, Observation]):
    """Appends a one-hot of the task to the observation: (8,) becomes (8 + num_tasks,), float32.

    Args:
        env: an environment with a one-dimensional Box of observations.
        index: the task's position, 0 <= index < num_tasks.
        num_tasks: the length of the one-hot.
    """

    def __init__(self, env: TaskEnv, index: int, num_tasks: int) -> None:
        super().__init__(env)
        self.one_hot = np.zeros(num_tasks, np.float32)
        self.one_hot[index] = 1.0
        box = cast(spaces.Box, env.observation_space)
        self.observation_space = spaces.Box(
            np.concatenate((box.low, np.zeros_like(self.one_hot))),
            np.concatenate((box.high, np.ones_like(self.one_hot))),
        )

    def observation(self, observation: Observation) -> Observation:
        """Observation (8,) to (8 + num_tasks,)."""
        return np.concatenate((observation, self.one_hot))


def assemble(
    task: TaskLike,
    tasks: TaskLike | Iterable[TaskLike] | None = None,
    variant: str = "blind",
    render_mode: str | None = None,
) -> TaskEnv:
    """The entry point of the registered ids: the task without time limit, which `gymnasium.make` adds.

    Arguments and errors are those of `make_task_env`.
    """
    task = get_task(task)
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}; variants are {', '.join(variants)}")
    world = get_tasks(tasks if tasks is not None else DEFAULT_TASKS if task.name in DEFAULT_TASKS else task)
    if task not in world:
        raise ValueError(f"task {task.name!r} is not one of the tasks {', '.join(each.name for each in world)}")
    game = gymnasium.make(
        BASE_ID,
        render_mode=render_mode,
        enable_wind=task.enable_wind,
        wind_power=task.wind_power,
        turbulence_power=task.turbulence_power,
    ).unwrapped
    env: TaskEnv = TaskPhysics(game, task)
    return TaskOneHot(env, world.index(task), len(world)) if variant == "aware" else env


def make_task_env(
    task: TaskLike,
    *,
    tasks: TaskLike | Iterable[TaskLike] | None = None,
    variant: str = "blind",
    render_mode: str | None = None,
) -> TaskEnv:
    """A Gymnasium environment of one task, truncated at the task's time limit.

    The same as `gymnasium.make("mtrl/LunarLander-<name>-v0", tasks=..., variant=..., render_mode=...)` without
    Gymnasium's passive checker, and open to tasks that are not registered.

    Args:
        task: a task or the name of a registered one.
        tasks: the tasks that the one-hot ranges over, in its order. Default: `DEFAULT_TASKS` where the task is
            one of them, else the task alone.
        variant: `"aware"`: observations (8 + T,) that end with the one-hot; `"blind"` (default): (8,).
        render_mode: `None` (default), `"rgb_array"` or `"human"`, as in Gymnasium.

    Raises:
        UnknownTaskError: a name that no registered task bears.
        ValueError: unknown variant; `tasks` empty, repeated, or without `task`.
    """
    return gymnasium.make(
        task_spec(get_task(task)), disable_env_checker=True, tasks=tasks, variant=variant, render_mode=render_mode
    )
