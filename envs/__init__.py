"""Tasks for multi-task learning: LunarLanders and Meta-World's robot arm. Importing this package makes them known.

It also registers `mtrl/LunarLander-<task>-v0` with Gymnasium.
"""

from envs.lunar_lander import BASE_ID, TaskPhysics, make_task_env, make_task_vec_env
from envs.meta_world import MetaWorldTask
from envs.tasks import (
    CONTINUOUS_TASKS,
    DEFAULT_TASKS,
    TASKS,
    LunarLanderTask,
    TaskLike,
    get_task,
    get_tasks,
    register_task,
)
from mtrl.rl.tasks import UnknownTaskError
from mtrl.rl.vec_env import ColumnError, TaskOneHot, TaskVecEnv, variants

__all__ = [
    "BASE_ID",
    "CONTINUOUS_TASKS",
    "DEFAULT_TASKS",
    "TASKS",
    "ColumnError",
    "LunarLanderTask",
    "MetaWorldTask",
    "TaskLike",
    "TaskOneHot",
    "TaskPhysics",
    "TaskVecEnv",
    "UnknownTaskError",
    "get_task",
    "get_tasks",
    "make_task_env",
    "make_task_vec_env",
    "register_task",
    "variants",
]
