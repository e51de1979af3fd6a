"""Tasks: a name, a way to make the environment, and the return from which the task counts as solved."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import gymnasium

__all__ = [
    "TASKS",
    "AnyTask",
    "MakeEnv",
    "Task",
    "TaskLike",
    "UnknownTaskError",
    "get_task",
    "get_tasks",
    "register_task",
]


@runtime_checkable
class AnyTask(Protocol):
    """What this package asks of a task. `Task` has it, and so has any class of yours with these three members.

    Two tasks that compare equal are the same task.
    """

    @property
    def name(self) -> str:
        """The name under which results are filed."""

    @property
    def solved_at(self) -> float | None:
        """The mean return from which the task counts as solved; None where no such return is known."""

    def make(self, *, render_mode: str | None) -> gymnasium.Env[Any, Any]:
        """Make a new environment of the task. Its time limit, if it has one, truncates an episode.

        Args:
            render_mode: as in `gymnasium.make`; None for an environment that is not shown.
        """


class MakeEnv(Protocol):
    """A function that makes a new environment. A class of environments is one, and so is a part of `gymnasium.make`."""

    def __call__(self, *, render_mode: str | None) -> gymnasium.Env[Any, Any]:
        """Make a new environment, which is rendered as `render_mode` says."""


@dataclass(frozen=True)
class Task:
    """A task whose environment is made by a function, as in `Task("Pole", partial(gymnasium.make, "CartPole-v1"))`.

    Attributes:
        name: the name under which results are filed.
        make: makes a new environment; it is called with the keyword `render_mode`.
        solved_at: the mean return from which the task counts as solved. Default None: no such return is known.
    """

    name: str
    make: MakeEnv
    solved_at: float | None = None


TaskLike = str | AnyTask
"""A task, or the name of a registered task."""

TASKS: dict[str, AnyTask] = {}
"""The registered tasks by name. Add to them with `register_task`."""

SomeTask = TypeVar("SomeTask", bound=AnyTask)


class UnknownTaskError(ValueError):
    """No registered task has this name."""


def get_task(task: TaskLike) -> AnyTask:
    """Return the task of this name. A task itself is returned as it is, whether or not it is registered.

    Raises:
        UnknownTaskError: no registered task has this name.
        ValueError: the task has the name of a registered task but differs from it. Results are filed under the
            name, so one name must not stand for two tasks.
    """
    if isinstance(task, str):
        if task not in TASKS:
            known = f"tasks are {', '.join(TASKS)}" if TASKS else "no task is registered"
            raise UnknownTaskError(f"unknown task {task!r}; {known}")
        return TASKS[task]
    if TASKS.get(task.name, task) != task:
        raise ValueError(f"task {task.name!r} differs from the registered task of that name; give it another name")
    return task


def get_tasks(tasks: TaskLike | Iterable[TaskLike]) -> tuple[AnyTask, ...]:
    """Return the tasks in the given order. A single task or name gives a tuple of one task.

    Raises:
        UnknownTaskError: no registered task has one of the names.
        ValueError: no task is given, two tasks have the same name, or a task differs from the registered task of its
            name.
    """
    found = tuple(get_task(task) for task in ((tasks,) if isinstance(tasks, str | AnyTask) else tasks))
    names = [task.name for task in found]
    if not found:
        raise ValueError("no tasks given" + (f"; tasks are {', '.join(TASKS)}" if TASKS else ""))
    if len(set(names)) < len(names):
        raise ValueError(f"tasks must be distinct, not {', '.join(names)}")
    return found


def register_task(task: SomeTask) -> SomeTask:
    """Make the task available by its name, and return it. Registering an equal task again changes nothing.

    Raises:
        ValueError: another task has this name.
    """
    get_task(task)
    TASKS.setdefault(task.name, task)
    return task
