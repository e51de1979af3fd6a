"""Tasks: a name, a way to make the environment, and what counts as solved.

`get_tasks` is the one place that turns what a user gives into tasks: registered names, ids of Gymnasium, addresses of a
user's own tasks, functions that make environments, and tasks themselves.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import gymnasium
from gymnasium.envs.registration import EnvSpec

from mtrl.files import one_line
from mtrl.limits import check_number

__all__ = [
    "GROUPS",
    "TASKS",
    "AnyTask",
    "GymTask",
    "MakeEnv",
    "Task",
    "TaskLike",
    "UnknownTaskError",
    "get_task",
    "get_tasks",
    "make_env",
    "register_group",
    "register_task",
    "solved_at",
]

LONGEST_NAME = 100
"""Characters in the name of a task. Results are filed under it."""


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
        """The return from which an episode counts as a success; None leaves it to the environment (see `solved_at`)."""

    def make(self, *, render_mode: str | None) -> gymnasium.Env[Any, Any]:
        """Make a new environment of the task. Its time limit, if it has one, truncates an episode.

        Args:
            render_mode: as in `gymnasium.make`; None for an environment that is not shown. A function that has no such
                argument is called without it; its task can't be shown.
        """


MakeEnv = Callable[..., gymnasium.Env[Any, Any]]
"""A function that makes a new environment; it may take the keyword `render_mode`. A class of environments is one."""


@dataclass(frozen=True)
class Task:
    """A task whose environment is made by a function, as in `Task("Pole", lambda: gymnasium.make("CartPole-v1"))`.

    Attributes:
        name: the name under which results are filed: 1 to 100 printable characters.
        make: makes a new environment; it is called with the keyword `render_mode` if it takes it.
        solved_at: the return from which an episode counts as a success, unless the environment itself reports success
            (see `succeeded`). Default None: the `reward_threshold` of the environment's specification, if it has one.

    Raises:
        ValueError: the name or `solved_at` is not as described, or `make` can't be called.
    """

    name: str
    make: MakeEnv
    solved_at: float | None = None

    def __post_init__(self) -> None:
        _check_task(self)
        if not callable(self.make):
            raise ValueError(f"make of task {self.name!r} is {one_line(self.make, 60)}; it must be a function")


@dataclass(frozen=True)
class GymTask:
    """The task of an environment that is registered with Gymnasium, under its id."""

    spec: EnvSpec

    @property
    def name(self) -> str:
        """The id."""
        return self.spec.id

    @property
    def solved_at(self) -> float | None:
        """The `reward_threshold` of the specification."""
        return self.spec.reward_threshold

    def make(self, *, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """Make an environment, without Gymnasium's passive checker."""
        return gymnasium.make(self.spec, render_mode=render_mode, disable_env_checker=True)


TaskLike = str | AnyTask | EnvSpec | MakeEnv
"""A task; the name of a registered task; an id of Gymnasium; an address; or a function that makes an environment."""

TASKS: dict[str, AnyTask] = {}
"""The tasks that are registered one by one, by name. Add to them with `register_task`."""

GROUPS: dict[str, tuple[AnyTask, ...]] = {}
"""The registered groups of tasks by name. Add to them with `register_group`."""

SomeTask = TypeVar("SomeTask", bound=AnyTask)


class UnknownTaskError(ValueError):
    """There is no such task: no registered task and no id of Gymnasium has the name, or nothing is at the address."""


def get_task(task: TaskLike, imports: bool = True) -> AnyTask:
    """Return the one task that is meant. See `get_tasks`, also for the errors.

    Raises:
        ValueError: an address leads to several tasks.
    """
    found = get_tasks(task, imports)
    if len(found) > 1:
        raise ValueError(f"{task!r} stands for {len(found)} tasks: {', '.join(one.name for one in found)}")
    return found[0]


def get_tasks(tasks: TaskLike | Iterable[Any], imports: bool = True) -> tuple[AnyTask, ...]:
    """Return the tasks in the given order.

    Args:
        tasks: one of the following, or several of them, also in lists within lists.

            - a task: a `Task`, or an object of a class of yours with the members of `AnyTask`;
            - the name of a registered task, or of a registered group, which stands for all its tasks;
            - an id of Gymnasium (`"CartPole-v1"`), also with the module that registers it (`"ale_py:ALE/Pong-v5"`), or
              a specification (`gymnasium.spec("CartPole-v1")`);
            - an address of your own (`"my_package.tasks:MOON"`) where any of these, or a list of them, is found. Its
              module is looked for where Python looks, and then in the current folder;
            - a function that makes an environment, or a class of environments. The task is called as the function is
              or, for a function without a name, as the specification of its environment.
        imports: whether the module of an address is imported. Give False for names from a stranger's file.

    Raises:
        UnknownTaskError: there is no such task, or the module of an address cannot be imported.
        ValueError: no task is given; two tasks have the same name; a task has no name; a task differs from the
            registered task of its name, as results are filed under the name; or something is no task.
    """
    try:
        found = tuple(_resolved(tasks, imports))
    except RecursionError:
        raise ValueError("a list of tasks, or an address, leads to itself") from None
    if not found:
        raise ValueError("no tasks given" + (f"; {_known()}" if TASKS or GROUPS else ""))
    names = [task.name for task in found]
    if len(set(names)) < len(names):
        raise ValueError(f"tasks must be distinct, not {', '.join(names)}; give each a name of its own")
    return found


def register_task(task: SomeTask) -> SomeTask:
    """Make the task available by its name, and return it. Registering an equal task again changes nothing.

    Raises:
        ValueError: another task or a group has this name, or it is not as `Task` describes it.
    """
    (known,) = _resolved(task, imports=False)
    if known.name in GROUPS:
        raise ValueError(f"{known.name!r} is the name of a group of tasks")
    TASKS.setdefault(known.name, task)
    return task


def register_group(name: str, tasks: TaskLike | Iterable[Any]) -> tuple[AnyTask, ...]:
    """Let one name stand for several tasks, as `get_tasks` takes them, and return them. Their own names are known, too.

    Raises:
        ValueError: a task or another group has this name, or `get_tasks` refuses the tasks.
    """
    found = get_tasks(tasks)
    if name in _registered() or name in gymnasium.registry or GROUPS.get(name, found) != found:
        raise ValueError(f"{name!r} is the name of another {'group' if name in GROUPS else 'task'}")
    GROUPS[name] = found
    return found


def _check_task(task: AnyTask) -> None:
    """Refuse a task whose name or threshold is not as `Task` describes them."""
    name = task.name
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        shown = one_line(repr(name), 60)
        raise ValueError(f"task name {shown} must be a text of 1 to {LONGEST_NAME} printable characters")
    if task.solved_at is not None:
        check_number(f"solved_at of task {name!r}", task.solved_at)


def make_env(task: AnyTask, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Make an environment of the task.

    Args:
        task: the task.
        render_mode: `"rgb_array"` or `"human"`, as in `gymnasium.make`. Default None: the environment is not shown.

    Raises:
        ValueError: the environment cannot be made, is no environment of Gymnasium, or cannot be shown in this way. The
            message is one line that names the task.
    """
    of_task = f"the environment of task {task.name!r}"
    try:
        env = task.make(**_render_argument(task.make, render_mode))
    except (Exception, SystemExit) as error:  # a user's function may do anything
        raise ValueError(f"{of_task} can't be made: {_reason(error)}") from error
    if not isinstance(env, gymnasium.Env):
        hint = "gymnasium.make makes one"
        if isinstance(env, gymnasium.vector.VectorEnv):
            hint = "a task makes one environment at a time, and make_task_vec_env copies it"
        raise ValueError(f"{of_task} is a {type(env).__module__}.{type(env).__name__}, not a gymnasium.Env; {hint}")
    if render_mode is not None and env.render_mode != render_mode:
        env.close()
        raise ValueError(
            f"{of_task} can't be shown: it was made with render_mode={env.render_mode!r} and not {render_mode!r}; let "
            "its function take render_mode and pass it on"
        )
    return env


def solved_at(task: AnyTask, env: gymnasium.Env[Any, Any]) -> float | None:
    """The return from which an episode of the task counts as a success.

    This is the task's own `solved_at`, or else the `reward_threshold` of the environment's specification. None if
    neither is known.

    Args:
        task: the task.
        env: an environment of the task.
    """
    if task.solved_at is not None:
        return float(task.solved_at)
    threshold = getattr(env.unwrapped.spec, "reward_threshold", None)
    return None if threshold is None else float(threshold)


# ------------------------------------------------------------------------------------------ from what is given to tasks


def _resolved(tasks: Any, imports: bool, name: str | None = None) -> Iterator[AnyTask]:
    """The tasks that something stands for; `name` is that of a function that has none, from its address."""
    if isinstance(tasks, str):
        yield from _named(tasks, imports)
    elif isinstance(tasks, EnvSpec):
        yield GymTask(tasks)
    elif isinstance(tasks, AnyTask) and not isinstance(tasks, type):
        _check_task(tasks)
        if _registered().get(tasks.name, tasks) != tasks:
            raise ValueError(f"task {tasks.name!r} differs from the registered task of that name; give it another name")
        yield tasks
    elif isinstance(tasks, gymnasium.Env):
        raise ValueError(
            f"{one_line(tasks, 60)} is an environment; give a function that makes one, as each column needs its own"
        )
    elif callable(tasks):
        yield from _resolved(_of_function(tasks, name), imports)
    elif isinstance(tasks, Iterable) and not isinstance(tasks, Mapping | bytes):
        for task in tasks:
            yield from _resolved(task, imports)
    else:
        raise ValueError(
            f"{one_line(repr(tasks), 60)} is no task; give a name, a Task, or a function that makes an environment"
        )


def _of_function(make: MakeEnv, name: str | None) -> AnyTask:
    """The task of a function that makes an environment."""
    name = name or getattr(make, "__name__", None)
    if name is None or name == "<lambda>":
        spec = _spec_of(make)
        if spec is None:
            raise ValueError(
                f"{one_line(repr(make), 60)} has no name, and its environment has none; give Task(name, make)"
            )
        name = spec.id
    return Task(name, make)


def _spec_of(make: MakeEnv) -> EnvSpec | None:
    env = make_env(Task("without a name", make))
    try:
        return env.unwrapped.spec
    finally:
        env.close()


def _named(word: str, imports: bool) -> Iterator[AnyTask]:
    """The tasks that a name, an id or an address stands for."""
    registered = _registered()
    if word in registered:
        yield registered[word]
    elif word in GROUPS:
        yield from GROUPS[word]
    elif word in gymnasium.registry:
        yield GymTask(gymnasium.registry[word])
    elif ":" in word and imports:
        yield from _at_address(word)
    else:
        near = _nearest(word, (*gymnasium.registry, *GROUPS, *registered.keys() - TASKS.keys()))
        if not near and "/" in word and ":" not in word:
            near = f"; an id that a package registers has its module before it, as in my_package:{word}"
        if Path(f"{word.replace('.', '/')}.py").is_file():
            near = f"; did you mean something in this module, as in {word}:NAME?"
        near = near or "; a task may also be an id of Gymnasium (CartPole-v1) or an address (my_tasks:MOON)"
        raise UnknownTaskError(f"unknown task {word!r}; {_known()}{near}")


def _registered() -> dict[str, AnyTask]:
    """All registered tasks by name: those of the groups, and the others."""
    return {task.name: task for tasks in GROUPS.values() for task in tasks} | TASKS


def _known() -> str:
    """The registered names, as part of a message. A group stands for its tasks, which may be many."""
    parts = [f"tasks are {', '.join(TASKS)}"] if TASKS else []
    parts += [f"groups of tasks are {', '.join(GROUPS)}"] if GROUPS else []
    return "; ".join(parts) or "no task is registered"


def _at_address(word: str) -> Iterator[AnyTask]:
    module_name, _, path = word.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*", module_name) or not path:
        raise UnknownTaskError(f"{word!r} is no address; an address is module:name, as in my_package.tasks:MOON")
    found: Any = _imported(module_name, word)
    if path in gymnasium.registry:  # as in `gymnasium.make`, the module was imported to register it
        yield GymTask(gymnasium.registry[path])
        return
    for part in path.split("."):
        if not hasattr(found, part):
            near = _nearest(part, [name for name in dir(found) if not name.startswith("_")])
            what = f"module {module_name!r} has no {path!r}, nor does it register an environment of that id"
            raise UnknownTaskError(f"unknown task {word!r}: {what}{near}")
        found = getattr(found, part)
    try:
        yield from _resolved(found, imports=True, name=path.rpartition(".")[2])
    except ValueError as error:
        raise type(error)(f"at {word!r}: {error}") from error.__cause__


def _imported(module: str, word: str) -> Any:
    """The module of an address, which may lie in the current folder."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may do anything
        hint = f"; did you mean {word.replace('.py:', ':')}?" if module.endswith(".py") else ""
        raise UnknownTaskError(f"cannot import the module of task {word!r}: {_reason(error)}{hint}") from error


def _nearest(word: str, names: Iterable[str]) -> str:
    """The most similar names, as the end of a message; case does not count."""
    known = {name.lower(): name for name in names}
    near = [known[name] for name in difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.7)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _render_argument(make: Callable[..., Any], render_mode: str | None) -> dict[str, Any]:
    """The argument `render_mode`, if the function takes it, or may take it and needs it."""
    try:
        arguments = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # a function that is not written in Python
        arguments = ()  # type: ignore[assignment]
    named = any(argument.name == "render_mode" for argument in arguments)
    any_keyword = any(argument.kind is argument.VAR_KEYWORD for argument in arguments)
    return {"render_mode": render_mode} if named or (any_keyword and render_mode is not None) else {}


def _reason(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}", longest=300)
