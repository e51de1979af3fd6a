"""Gymnasium environments made from a task."""

from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.box2d import LunarLander, free_shapes
from envs.tasks import CONTINUOUS_TASKS, DEFAULT_TASKS, LunarLanderTask, TaskLike, get_task, get_tasks
from mtrl.rl import vec_env

__all__ = ["BASE_ID", "Action", "Observation", "TaskEnv", "TaskPhysics", "make_task_env", "make_task_vec_env"]

BASE_ID = "LunarLander-v3"
"""The Gymnasium environment that the tasks change. Results record it, and the versions of Gymnasium and Box2D."""

free_shapes()

Observation = NDArray[np.float32]  # (8,) in the variant "blind", (8 + T,) in the variant "aware"
Action = int | np.int64 | NDArray[np.float32]
"""0: no engine, 1: left engine, 2: main engine, 3: right engine. Where actions are continuous, two throttles from -1 to
1: of the main engine, and of the left (below 0) or right one."""
TaskEnv = gymnasium.Env[Observation, Action]


class TaskPhysics(gymnasium.Wrapper[Observation, Action, Observation, Action]):
    """Applies a task's gravity, mass and gusts to LunarLander.

    Gymnasium's own wind is not applied here: it is an argument of LunarLander's constructor.

    Args:
        env: `LunarLander-v3`, with or without wrappers.
        task: the physics. It can be read as the attribute `task`, and through further wrappers with
            `get_wrapper_attr("task")`.

    Attributes:
        gust: the lateral force of the last step as a share of the task's `gust_power`, from -1 to 1; 0 without a gust.
            Pictures show it as an arrow.
    """

    def __init__(self, env: TaskEnv, task: LunarLanderTask) -> None:
        super().__init__(env)
        self.task = task
        self.game = cast(LunarLander, env.unwrapped)
        self.gust = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in the task's physics."""
        # LunarLander's constructor refuses a gravity below -12. But reset() builds a new Box2D world with the value of
        # this attribute and takes the first step of the episode in it, so the attribute is set before the reset.
        self.game.gravity = self.task.gravity
        observation, info = self.env.reset(seed=seed, options=options)
        self.gust = 0.0
        if self.task.mass_scale != 1.0:
            for body in (self.game.lander, *self.game.legs):
                for fixture in body.fixtures:
                    fixture.density *= self.task.mass_scale
                body.ResetMassData()
        return observation, info

    def step(self, action: Action) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Apply the gust, then take the step.

        The information about a last step says in `outcome` how the flight ended: `landed`, `crashed` or `flew away`.
        """
        task, game = self.task, self.game
        assert game.lander is not None, "call reset() before step()"
        self.gust = 0.0
        if task.gust_power and not (task.gust_gated and any(leg.ground_contact for leg in game.legs)):
            # The gust is drawn from the environment's own generator, so that the seed given to reset() reproduces it.
            gust = game.np_random.uniform(-task.gust_power, task.gust_power)
            game.lander.ApplyForceToCenter((gust, 0.0), True)
            self.gust = float(gust / task.gust_power)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated:  # LunarLander asks in this order, too, and a craft that has come to rest is asleep
            info["outcome"] = "landed" if not game.lander.awake else "crashed" if game.game_over else "flew away"
        return observation, reward, terminated, truncated, info


def assemble(
    task: TaskLike,
    tasks: TaskLike | Iterable[TaskLike] | None = None,
    variant: str = "blind",
    render_mode: str | None = None,
) -> TaskEnv:
    """Make the environment without its time limit: the entry point of the registered ids.

    `gymnasium.make` adds the time limit. The arguments and errors are those of `make_task_env`.
    """
    task = get_task(task)
    if tasks is None:
        tasks = next((known for known in (DEFAULT_TASKS, CONTINUOUS_TASKS) if task.name in known), task)
    game = gymnasium.make(
        BASE_ID,
        render_mode=render_mode,
        continuous=task.continuous,
        enable_wind=task.enable_wind,
        wind_power=task.wind_power,
        turbulence_power=task.turbulence_power,
    ).unwrapped
    return vec_env.mark_task(TaskPhysics(game, task), task, get_tasks(tasks), variant)


def make_task_env(
    task: TaskLike,
    *,
    tasks: TaskLike | Iterable[TaskLike] | None = None,
    variant: str = "blind",
    render_mode: str | None = None,
) -> TaskEnv:
    """Make a Gymnasium environment of one task, with the task's time limit.

    This is `gymnasium.make("mtrl/LunarLander-<name>-v0", tasks=..., variant=..., render_mode=...)` without
    Gymnasium's passive checker. It also takes tasks that are not registered.

    Args:
        task: a task or the name of a registered task.
        tasks: the tasks that the one-hot distinguishes, in its order. Default None: `DEFAULT_TASKS` or
            `CONTINUOUS_TASKS` if the task is one of them, and otherwise the task alone.
        variant: `"aware"` gives observations of shape (8 + T,) that end with the one-hot, `"blind"` gives the 8 state
            values. Default `"blind"`.
        render_mode: None (the default), `"rgb_array"` or `"human"`, as in Gymnasium.

    Raises:
        UnknownTaskError: no registered task has this name.
        ValueError: the variant is unknown, or `tasks` is empty, repeats a task or lacks `task`.
    """
    return get_task(task).make(tasks=tasks, variant=variant, render_mode=render_mode)


def make_task_vec_env(
    tasks: TaskLike | Iterable[TaskLike] = DEFAULT_TASKS,
    envs_per_task: int | Sequence[int] = 4,
    seed: int | None = None,
    variant: str = "aware",
    **options: Any,
) -> vec_env.TaskVecEnv:
    """Call `mtrl.rl.make_task_vec_env`, with the three tasks of the benchmark as the default for `tasks`."""
    return vec_env.make_task_vec_env(tasks, envs_per_task, seed, variant, **options)
