"""The tasks: LunarLander with changed physics. Each task is one line of data."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from mtrl.limits import check_number
from mtrl.rl import tasks as registry
from mtrl.rl.tasks import TASKS, UnknownTaskError

__all__ = [
    "CONTINUOUS_TASKS",
    "DEFAULT_TASKS",
    "TASKS",
    "LunarLanderTask",
    "TaskLike",
    "UnknownTaskError",
    "get_task",
    "get_tasks",
    "register_task",
]


@dataclass(frozen=True)
class LunarLanderTask:
    """The changes that one task makes to Gymnasium's `LunarLander-v3`. The defaults change nothing.

    Quantities are in Box2D's units, which are metres, kilograms and seconds. 50 environment steps are one second.

    Raises:
        ValueError: a field is out of range or not finite, or the name cannot be part of a Gymnasium id.
    """

    name: str
    """Consists of letters, digits, `.` and `-`, and becomes part of the id `mtrl/LunarLander-<name>-v0`."""

    gravity: float = -10.0
    """Vertical acceleration, below 0. Values below -12 are allowed, which Gymnasium's constructor refuses."""

    gust_power: float = 0.0
    """At each step a lateral force drawn from U(-gust_power, +gust_power) acts on the lander's centre. 0: no gusts."""

    gust_gated: bool = True
    """Whether gusts blow only while neither leg touches the ground, as Gymnasium's own wind does. If they blow on the
    ground too, the lander never comes to rest, and so it never counts as landed."""

    enable_wind: bool = False
    """Whether Gymnasium's own wind blows, a lateral force and a torque that vary slowly."""

    wind_power: float = 15.0
    """Largest force of Gymnasium's own wind. Gymnasium warns above 20."""

    turbulence_power: float = 1.5
    """Largest torque of Gymnasium's own wind. Gymnasium warns above 2."""

    mass_scale: float = 1.0
    """Factor on the mass and inertia of the whole craft, from the first step after each reset. The power of the
    engines, the springs of the legs and the random starting velocity are not scaled."""

    time_limit: int = 1000
    """Steps after which an episode is truncated. This is not a termination, so agents bootstrap from the last state."""

    solved_at: float = 200.0
    """Mean return from which the task counts as solved. The default is Gymnasium's figure for LunarLander."""

    continuous: bool = False
    """Whether the engines are throttled by two numbers from -1 to 1, as Gymnasium's `continuous=True` has them, instead
    of four actions."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", self.name):
            raise ValueError(f"task name {self.name!r} must consist of letters, digits, '.' and '-'")
        of_task = f"of task {self.name!r}"
        check_number(f"gravity {of_task}", self.gravity, below=0)
        for field in ("gust_power", "wind_power", "turbulence_power"):
            check_number(f"{field} {of_task}", getattr(self, field), least=0)
        check_number(f"mass_scale {of_task}", self.mass_scale, above=0)
        time_limit = check_number(f"time_limit {of_task}", self.time_limit, least=1, whole=True)
        object.__setattr__(self, "time_limit", time_limit)  # a frozen dataclass refuses plain assignment
        check_number(f"solved_at {of_task}", self.solved_at)

    @property
    def env_id(self) -> str:
        """The Gymnasium id, for example `mtrl/LunarLander-Windy-v0`."""
        return f"mtrl/LunarLander-{self.name}-v0"

    @property
    def spec(self) -> EnvSpec:
        """The specification from which Gymnasium makes this task, whether or not the task is registered."""
        return EnvSpec(
            id=self.env_id,
            entry_point="envs.lunar_lander:assemble",
            max_episode_steps=self.time_limit,
            kwargs={"task": self},
        )

    @property
    def in_words(self) -> str:
        """What a picture of the task says of its physics, such as `gravity 12.5` or `gravity 10, gusts`."""
        blows = "gusts" if self.gust_power else "wind" if self.enable_wind else ""
        mass = "" if self.mass_scale == 1.0 else f"mass x {self.mass_scale:g}"
        return ", ".join(filter(None, (f"gravity {-self.gravity:g}", blows, mass)))

    def make(self, *, render_mode: str | None = None, **options: Any) -> gymnasium.Env[Any, Any]:
        """Make an environment of this task, with its time limit. For `options` see `envs.make_task_env`."""
        return gymnasium.make(self.spec, disable_env_checker=True, render_mode=render_mode, **options)


TaskLike = str | LunarLanderTask
"""A task, or the name of a registered task."""

DEFAULT_TASKS = ("Standard", "Windy", "Heavy")
"""The names of the three tasks of the benchmark, in the order of their one-hot."""

CONTINUOUS_TASKS = ("StandardContinuous", "WindyContinuous", "HeavyContinuous")
"""The names of the same three tasks with continuous actions, in the same order."""


def get_task(task: TaskLike) -> LunarLanderTask:
    """Return the LunarLander task of this name. See `mtrl.rl.tasks.get_task`.

    Raises:
        UnknownTaskError: no registered task has this name.
        ValueError: the task has the name of a registered task but differs from it, or is no LunarLander task.
    """
    return _lander_task(registry.get_task(task))


def get_tasks(tasks: TaskLike | Iterable[TaskLike]) -> tuple[LunarLanderTask, ...]:
    """Return the LunarLander tasks in the given order. See `mtrl.rl.tasks.get_tasks`, and for the errors `get_task`."""
    return tuple(_lander_task(task) for task in registry.get_tasks(tasks))


def _lander_task(task: registry.AnyTask) -> LunarLanderTask:
    if not isinstance(task, LunarLanderTask):
        raise ValueError(f"task {task.name!r} is not a LunarLander task")
    return task


def register_task(task: LunarLanderTask) -> LunarLanderTask:
    """Make the task available by its name and by its Gymnasium id. Registering it again changes nothing.

    Raises:
        ValueError: another task has this name.
    """
    registry.register_task(task)
    if task.env_id not in gymnasium.registry:
        gymnasium.register(
            task.env_id, task.spec.entry_point, max_episode_steps=task.time_limit, kwargs=task.spec.kwargs
        )
    return task


register_task(LunarLanderTask("Standard"))
register_task(LunarLanderTask("Windy", gust_power=20.0, time_limit=400))
register_task(LunarLanderTask("Heavy", gravity=-12.5, time_limit=800))
# This task cannot be landed, because the gusts never let the craft come to rest. It is kept for comparisons with older
# figures.
register_task(LunarLanderTask("WindyUngated", gust_power=20.0, gust_gated=False, time_limit=400))
for _name in DEFAULT_TASKS:
    register_task(replace(get_task(_name), name=f"{_name}Continuous", continuous=True))
