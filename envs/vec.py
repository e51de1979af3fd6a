"""All tasks side by side in one Stable-Baselines3 vector environment."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from envs.lunar_lander import Action, Observation, make_task_env
from envs.tasks import DEFAULT_TASKS, LunarLanderTask, TaskLike, get_tasks

__all__ = ["TaskVecEnv", "make_task_vec_env"]


class TaskVecEnv(DummyVecEnv):
    """A `DummyVecEnv` whose columns draw from independent random streams.

    `DummyVecEnv` seeds column i with `seed + i`, so that runs with seeds 0 and 1 share all columns but one; and
    an algorithm made with `seed=k` calls `env.seed(k)`. Hence the override: both ways lead here.
    """

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the columns at the next `reset()`; the same seed gives the same episodes.

        Args:
            seed: any non-negative integer; column i gets child i of its NumPy `SeedSequence`. `None` (default)
                takes fresh entropy from the operating system.

        Returns:
            One 64-bit seed per column.
        """
        children = np.random.SeedSequence(seed).spawn(self.num_envs)
        self._seeds = [int(child.generate_state(1, np.uint64)[0]) for child in children]
        return self._seeds


def make_task_vec_env(
    tasks: TaskLike | Iterable[TaskLike] = DEFAULT_TASKS,
    envs_per_task: int = 4,
    seed: int | None = None,
    variant: str = "aware",
    render_mode: str | None = None,
    world: TaskLike | Iterable[TaskLike] | None = None,
) -> TaskVecEnv:
    """Several copies of each task as the columns of one vector environment, stepped in this process.

    Columns are task-major: the first `envs_per_task` belong to the first task, and so on; `get_attr("task")`
    gives each column's task. A column that ends is reset at once, with its last observation in
    `info["terminal_observation"]` and `info["TimeLimit.truncated"]` true where only the time limit ended it.
    Each column is in a `Monitor`, which puts the episode's return and length in `info["episode"]`.

    Args:
        tasks: tasks or names of registered ones, all distinct. Default: the three of the benchmark.
        envs_per_task: columns per task, at least 1.
        seed: non-negative; see `TaskVecEnv.seed`. Default: fresh entropy.
        variant: `"aware"` (default): observations (8 + T,), T the number of tasks in `world`; `"blind"`: (8,).
        render_mode: `None` (default), `"rgb_array"` or `"human"`.
        world: the tasks that the one-hot ranges over. Default: `tasks`. With it an environment of one task suits
            a model of three.

    Raises:
        UnknownTaskError: a name that no registered task bears.
        ValueError: tasks empty, repeated or not in `world`; `envs_per_task` below 1; unknown variant; negative
            seed.
    """
    columns = get_tasks(tasks)
    if envs_per_task < 1:
        raise ValueError(f"envs_per_task must be at least 1, not {envs_per_task}")
    reach = columns if world is None else get_tasks(world)

    def column(task: LunarLanderTask) -> Monitor[Observation, Action]:
        return Monitor(make_task_env(task, tasks=reach, variant=variant, render_mode=render_mode))

    vec_env = TaskVecEnv([partial(column, task) for task in columns for _ in range(envs_per_task)])
    vec_env.seed(seed)
    return vec_env
