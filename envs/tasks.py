"""The tasks: LunarLander under changed physics, each one line of data."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import gymnasium
from gymnasium.envs.registration import EnvSpec

__all__ = [
    "DEFAULT_TASKS",
    "TASKS",
    "LunarLanderTask",
    "TaskLike",
    "UnknownTaskError",
    "get_task",
    "get_tasks",
    "register_task",
    "task_spec",
]


@dataclass(frozen=True)
class LunarLanderTask:
    """What one task changes in Gymnasium's `LunarLander-v3`; the defaults change nothing.

    Quantities are in Box2D's units: metres, kilograms, seconds; 50 environment steps make one second.

    Raises:
        ValueError: a field is out of range, not finite, or the name cannot be part of a Gymnasium id.
    """

    name: str
    """Letters, digits, `.` and `-`; becomes part of the id `mtrl/LunarLander-<name>-v0`."""

    gravity: float = -10.0
    """Vertical acceleration, negative. Unlike Gymnasium's constructor this takes values below -12 too."""

    gust_power: float = 0.0
    """Each step a lateral force drawn from U(-gust_power, +gust_power) acts on the lander's centre; 0 is still air."""

    gust_gated: bool = True
    """Whether gusts blow only while neither leg touches the ground. Ungated gusts keep the lander awake for ever, so
    that it never counts as landed; Gymnasium gates its own wind in the same way."""

    enable_wind: bool = False
    """Gymnasium's own wind: slowly varying lateral force and torque."""

    wind_power: float = 15.0
    """Largest force of Gymnasium's own wind; Gymnasium warns above 20."""

    turbulence_power: float = 1.5
    """Largest torque of Gymnasium's own wind; Gymnasium warns above 2."""

    mass_scale: float = 1.0
    """Factor on the mass and inertia of the whole craft, body and legs, from the first step after each reset.
    Engine power, leg springs and the random starting velocity keep their size."""

    time_limit: int = 1000
    """Steps after which an episode is truncated (not terminated: bootstrap through it)."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", self.name):
            raise ValueError(f"task name {self.name!r} must consist of letters, digits, '.' and '-'")
        limits = (
            ("gravity", self.gravity < 0, "a finite negative number"),
            ("gust_power", self.gust_power >= 0, "a finite number of at least 0"),
            ("wind_power", self.wind_power >= 0, "a finite number of at least 0"),
            ("turbulence_power", self.turbulence_power >= 0, "a finite number of at least 0"),
            ("mass_scale", self.mass_scale > 0, "a finite number above 0"),
            ("time_limit", isinstance(self.time_limit, int) and self.time_limit >= 1, "an integer of at least 1"),
        )
        for field, holds, rule in limits:
            value = getattr(self, field)
            if not (holds and math.isfinite(value)):
                raise ValueError(f"{field} of task {self.name!r} must be {rule}, not {value!r}")

    @property
    def env_id(self) -> str:
        """The Gymnasium id, for example `mtrl/LunarLander-Windy-v0`."""
        return f"mtrl/LunarLander-{self.name}-v0"


TaskLike = str | LunarLanderTask
"""A task, or the name of a registered one."""

TASKS: dict[str, LunarLanderTask] = {}
"""The registered tasks by name. Add to them with `register_task`, which also makes the Gymnasium id."""

DEFAULT_TASKS = ("Standard", "Windy", "Heavy")
"""The names of the benchmark's three tasks, in the order of their one-hot."""


class UnknownTaskError(ValueError):
    """A name that no registered task bears."""


def get_task(task: TaskLike) -> LunarLanderTask:
    """The task of that name; a task itself is returned as it is, registered or not.

    Raises:
        UnknownTaskError: no registered task has this name.
        ValueError: the task bears the name of a registered task but differs from it. Results are filed under the
            name, so one name must not stand for two tasks.
    """
    if isinstance(task, LunarLanderTask):
        if TASKS.get(task.name, task) != task:
            raise ValueError(f"task {task.name!r} differs from the registered task of that name; give it another name")
        return task
    if task not in TASKS:
        raise UnknownTaskError(f"unknown task {task!r}; tasks are {', '.join(TASKS)}")
    return TASKS[task]


def get_tasks(tasks: TaskLike | Iterable[TaskLike]) -> tuple[LunarLanderTask, ...]:
    """The tasks in the given order; a lone task or name makes a tuple of one.

    Raises:
        UnknownTaskError: as `get_task`.
        ValueError: no tasks, or two of the same name.
    """
    found = tuple(get_task(task) for task in ((tasks,) if isinstance(tasks, TaskLike) else tasks))
    names = [task.name for task in found]
    if not found:
        raise ValueError(f"no tasks given; tasks are {', '.join(TASKS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"tasks must be distinct, not {', '.join(names)}")
    return found


def task_spec(task: LunarLanderTask) -> EnvSpec:
    """How Gymnasium makes this task; `gymnasium.make` accepts the spec whether or not the task is registered."""
    return EnvSpec(
        id=task.env_id,
        entry_point="envs.lunar_lander:assemble",
        max_episode_steps=task.time_limit,
        kwargs={"task": task},
    )


def register_task(task: LunarLanderTask) -> LunarLanderTask:
    """Make the task available by name and as a Gymnasium id; a second time does nothing.

    Raises:
        ValueError: another task has this name.
    """
    if get_task(task).name not in TASKS:
        spec = task_spec(task)
        gymnasium.register(spec.id, spec.entry_point, max_episode_steps=spec.max_episode_steps, kwargs=spec.kwargs)
        TASKS[task.name] = task
    return task


register_task(LunarLanderTask("Standard"))
register_task(LunarLanderTask("Windy", gust_power=20.0, time_limit=400))
register_task(LunarLanderTask("Heavy", gravity=-12.5, time_limit=800))
# Cannot be landed (the gusts never let the craft come to rest); kept only to compare with older figures.
register_task(LunarLanderTask("WindyUngated", gust_power=20.0, gust_gated=False, time_limit=400))
