"""The tasks of a command: from the words after `--tasks` to tasks, and from tasks to what files say of them.

Importing this module makes the names of the landers and of Meta-World's tasks known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import envs
from experiments.program.flags import UsageError
from mtrl.rl.tasks import AnyTask, GymTask, UnknownTaskError, get_task, get_tasks

MOST_BYTES = 200  # of a name of a file; file systems take 255

__all__ = ["describe_tasks", "file_stems", "get_task", "get_tasks", "packages_of", "tasks_called"]


def tasks_called(names: Iterable[str], given: Sequence[str] = ()) -> dict[str, AnyTask]:
    """The tasks that a file calls by these names.

    A stranger may have written the file, so no module is imported for a name from it. A task of the user's own is known
    only if the user says where it is.

    Args:
        names: names from a file.
        given: words of the user's after `--tasks`: these tasks are known besides the landers and Gymnasium's ids.

    Raises:
        UsageError: a task is not known; the message says how to make it known.
        ValueError: a word of the user's stands for no task.
    """
    own = {task.name: task for task in get_tasks(given)} if given else {}
    found = {}
    for name in names:
        try:
            found[name] = own[name] if name in own else get_task(name, imports=False)
        except UnknownTaskError as error:
            raise UsageError(f"{error}; if it is your own, say where it is: --tasks my_package.tasks:NAME") from None
    return found


def describe_tasks(tasks: Sequence[AnyTask]) -> dict[str, Any]:
    """What config.json says of the tasks of a run: their Gymnasium ids by name, and the environment that they vary.

    An id is None for a task of the user's own, and the environment is None where the tasks have several.
    """
    ids = {task.name: task.name if isinstance(task, GymTask) else getattr(task, "env_id", None) for task in tasks}
    bases = {envs.BASE_ID if isinstance(task, envs.LunarLanderTask) else ids[task.name] for task in tasks}
    return {"environments": ids, "base_environment": bases.pop() if len(bases) == 1 else None}


def packages_of(tasks: Iterable[AnyTask]) -> tuple[str, ...]:
    """The packages that Meta-World's tasks come from, whose versions a run of such tasks records.

    Raises:
        ValueError: the extra is not installed.
    """
    ours = (task for task in tasks if isinstance(task, envs.MetaWorldTask))
    return tuple(dict.fromkeys(package for task in ours for package in task.packages))


def file_stems(names: Iterable[str]) -> Mapping[str, str]:
    """A name of a file, without its ending, for each name of a task, all of them different.

    Letters, digits, `-`, `_`, `.` and spaces stay; other characters, such as the slash in Gymnasium's ids, become `_`.
    What is too long for a name of a file is cut.
    """
    stems: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"[^\w. -]", "_", name).encode()[:MOST_BYTES].decode(errors="ignore").strip(" .") or "task"
        taken = {other.lower() for other in stems.values()}  # some file systems do not tell cases apart
        number = 2
        unique = stem
        while unique.lower() in taken:
            unique, number = f"{stem}_{number}", number + 1
        stems[name] = unique
    return stems
