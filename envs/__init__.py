"""LunarLander tasks for multi-task learning; importing this package registers `mtrl/LunarLander-<task>-v0`."""

from envs.lunar_lander import BASE_ID, TaskOneHot, TaskPhysics, make_task_env, variants
from envs.tasks import (
    DEFAULT_TASKS,
    TASKS,
    LunarLanderTask,
    TaskLike,
    UnknownTaskError,
    get_task,
    get_tasks,
    register_task,
    task_spec,
)
from envs.vec import ColumnError, TaskVecEnv, make_task_vec_env

__all__ = [
    "BASE_ID",
    "DEFAULT_TASKS",
    "TASKS",
    "ColumnError",
    "LunarLanderTask",
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
    "task_spec",
    "variants",
]
