"""The columns of a vector environment: several copies of every task side by side, for Stable-Baselines3."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from mtrl.files import one_line
from mtrl.limits import check_choice, check_number
from mtrl.rl.first_observation import check_first_observation
from mtrl.rl.tasks import AnyTask, TaskLike, get_tasks, make_env
from mtrl.rl.watchdog import Watchdog
from mtrl.rl.wrappers import CheckedSteps, CommonShape, TaskOneHot, as_column, remedy_for
from mtrl.states import PCG64, Like, Whole, check_form

__all__ = [
    "ColumnError",
    "TaskOneHot",
    "TaskVecEnv",
    "make_task_vec_env",
    "mark_task",
    "variants",
]

Action = TypeVar("Action")
Observation = NDArray[Any]

variants = ("aware", "blind")
"""In the variant `aware` an observation ends with a one-hot of the task; in the variant `blind` it does not."""

EPISODES_KEPT = 100
"""How many of its last episodes a column keeps, for `Monitor.get_episode_rewards` and similar methods."""


class ColumnError(RuntimeError):
    """A column of a `TaskVecEnv` failed. The message is one line with the task, the seed and the reason."""


def mark_task(
    env: gymnasium.Env[Observation, Action], task: AnyTask, one_hot_tasks: Sequence[AnyTask], variant: str
) -> gymnasium.Env[Observation, Action]:
    """Append the task's one-hot to the observations of `env` if the variant is `"aware"`.

    Raises:
        ValueError: the variant is unknown, or `task` is not one of `one_hot_tasks`.
    """
    check_choice("variant", variant, variants)
    if task not in one_hot_tasks:
        raise ValueError(f"task {task.name!r} is not one of the tasks {', '.join(each.name for each in one_hot_tasks)}")
    return TaskOneHot(env, one_hot_tasks.index(task), len(one_hot_tasks)) if variant == "aware" else env


class Episode(NamedTuple):
    """The data from which the present episode of a column can be played again."""

    generator: Mapping[str, Any]  # state of the column's generator before the reset that began the episode
    actions: list[Any]  # the actions of the episode so far


class TaskVecEnv(DummyVecEnv):
    """A `DummyVecEnv` whose columns draw from independent random streams, and which can be saved amid its episodes.

    `DummyVecEnv` seeds column i with `seed + i`, so that runs with the seeds 0 and 1 share all columns but one. This
    class gives every column a stream of its own instead, also when an algorithm made with `seed=k` calls
    `env.seed(k)`.

    The state of a physics engine cannot be saved, but the same state can be reached again, bit for bit. `state_dict`
    therefore holds the state that each column's generator had when the episode began, and the actions since then.
    `load_state_dict` resets each column from that state and repeats the actions.

    Args:
        env_fns: functions that make the columns. A column may draw random numbers from `unwrapped.np_random` only, as
            Gymnasium's environments do.
        step_timeout: seconds that one step of all columns may take (see `Watchdog`). Default 0: no limit.

    Attributes:
        column_seeds: the seed of each column's stream; None if the seed came from the operating system.

    Raises:
        ValueError: the columns' observation or action spaces differ, or `step_timeout` is
            out of range.
    """

    def __init__(self, env_fns: list[Callable[[], gymnasium.Env[Any, Any]]], step_timeout: float = 0.0) -> None:
        super().__init__(env_fns)
        for kind in ("action_space", "observation_space"):
            for column, env in enumerate(self.envs):
                if getattr(env, kind) != getattr(self, kind):
                    raise ValueError(
                        f"all columns must have the same {kind}, but column {column}{self._of_task(column)} has "
                        f"{one_line(getattr(env, kind))} and column 0{self._of_task(0)} has "
                        f"{one_line(getattr(self, kind))}; {remedy_for(kind, getattr(env, kind), getattr(self, kind))}"
                    )
        self.column_seeds: list[int | None] = [None] * self.num_envs
        self._watchdog = Watchdog(step_timeout)
        self._episodes: list[Episode] = []

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the columns at the next `reset()`; the same seed gives the same episodes.

        Args:
            seed: a non-negative integer. Column i gets child i of its NumPy `SeedSequence`. Default None: fresh
                entropy from the operating system.

        Returns:
            One 64-bit seed per column.
        """
        children = np.random.SeedSequence(seed).spawn(self.num_envs)
        self._seeds = [int(child.generate_state(1, np.uint64)[0]) for child in children]
        return self._seeds

    def reset(self) -> VecEnvObs:
        """Begin an episode in every column, and return the first observations.

        Raises:
            ColumnError: a column failed or did not answer in time.
        """
        episodes = []
        column = 0
        try:
            with self._watchdog:
                for column, (env, seed) in enumerate(zip(self.envs, self._seeds, strict=True)):
                    options = {"options": self._options[column]} if self._options[column] else {}
                    if seed is not None:
                        self.column_seeds[column] = seed
                    episodes.append(Episode(_generator_state(env, seed), []))
                    observation, self.reset_infos[column] = env.reset(seed=seed, **options)
                    self._keep(column, observation)
        except Exception as error:
            raise self._failure(column, error) from error
        self._episodes = episodes
        self._reset_seeds()
        self._reset_options()
        return self._obs_from_buf()

    def step_wait(self) -> VecEnvStepReturn:
        """Step every column. A column whose episode ends is reset at once, as in `DummyVecEnv`.

        Raises:
            ColumnError: a column failed, gave an observation of the wrong shape, or did not answer in time.
                `state_dict` then gives the state before this step.
        """
        begun: dict[int, Episode] = {}
        column = 0
        try:
            with self._watchdog:
                for column, env in enumerate(self.envs):
                    observation, reward, terminated, truncated, info = env.step(self.actions[column])
                    self._keep(column, observation)
                    info = dict(info)  # some environments return the same dictionary at every step
                    info["TimeLimit.truncated"] = truncated and not terminated
                    if terminated or truncated:
                        info["terminal_observation"] = observation
                        begun[column] = Episode(_generator_state(env), [])
                        observation, self.reset_infos[column] = env.reset()
                        self._keep(column, observation)
                    self.buf_rews[column] = reward
                    self.buf_dones[column] = terminated or truncated
                    self.buf_infos[column] = info
        except Exception as error:
            raise self._failure(column, error) from error
        for column, episode in enumerate(self._episodes):
            if column in begun:
                self._episodes[column] = begun[column]
            else:
                episode.actions.append(self.actions[column])
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), list(self.buf_infos)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every column after the last step that all columns took."""
        dtype = self.action_space.dtype
        return {
            "seeds": list(self.column_seeds),
            "episodes": [
                {"generator": dict(episode.generator), "actions": np.array(episode.actions, dtype)}
                for episode in self._episodes
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> VecEnvObs:
        """Bring every column into the state that `state_dict` returned, and return the observations in that state.

        Raises:
            ColumnError: a column cannot be brought into its state.
            ValueError: the state has another number of columns, or is malformed.
        """
        self._check_state(state)
        self.column_seeds = list(state["seeds"])
        self._episodes = [Episode(saved["generator"], list(saved["actions"])) for saved in state["episodes"]]
        for column, (env, episode) in enumerate(zip(self.envs, self._episodes, strict=True)):
            try:
                env.unwrapped.np_random.bit_generator.state = episode.generator
                observation, self.reset_infos[column] = env.reset()
                for action in episode.actions:
                    observation = env.step(action)[0]
                self._keep(column, observation)
            except Exception as error:
                raise self._failure(column, error) from error
        self._reset_seeds()
        return self._obs_from_buf()

    def _check_state(self, state: Mapping[str, Any]) -> None:
        check_form("environments", state, {"seeds": list, "episodes": list})
        for saved in state.values():
            if len(saved) != self.num_envs:
                raise ValueError(f"the state is of {len(saved)} columns; there are {self.num_envs}")
        actions = np.zeros((0, *(self.action_space.shape or ())), self.action_space.dtype)
        for column, (seed, episode) in enumerate(zip(state["seeds"], state["episodes"], strict=True)):
            name = f"environments of column {column}"
            generator = PCG64 if _generator_state(self.envs[column])["bit_generator"] == "PCG64" else dict
            check_form(name, seed, None if seed is None else Whole(2**64))
            check_form(name, episode, {"generator": generator, "actions": Like(actions, rows=True)})
            if not all(map(self.action_space.contains, episode["actions"])):
                raise ValueError(f"{name}: an action is none of {self.action_space}")

    def _obs_from_buf(self) -> VecEnvObs:
        # The base class keeps the one array of a Box in a dictionary and copies both. Copying the array is enough.
        if isinstance(self.observation_space, spaces.Dict):
            return {key: array.copy() for key, array in self.buf_obs.items()}
        return self.buf_obs[None].copy()  # type: ignore[index]

    def _keep(self, column: int, observation: Any) -> None:
        """Store the observation of a column. NumPy would broadcast a wrong shape, and cut off fractions."""
        for key, buffer in self.buf_obs.items():
            part = observation if key is None else observation[key]
            if np.shape(part) != buffer.shape[1:]:
                raise ValueError(f"an observation of shape {np.shape(part)}, not {buffer.shape[1:]}")
            if buffer.dtype.kind in "bui" and np.asarray(part).dtype.kind == "f":
                raise ValueError(f"an observation of {np.asarray(part).dtype} in a space of {buffer.dtype}")
        self._save_obs(column, observation)

    def _failure(self, column: int, error: Exception) -> ColumnError:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        seed = self.column_seeds[column]
        return ColumnError(f"environment {column}{self._of_task(column)} (seed {seed}) failed: {what}")

    def _of_task(self, column: int) -> str:
        """The column's task, as part of a message."""
        name = name_of(self.get_attr("task", column)[0]) if self.has_attr("task") else None
        return "" if name is None else f" of task {name}"


def name_of(task: Any) -> str | None:
    """The name of a task, which is its attribute `name` or, for plain data, what it is as text; None without one."""
    name = getattr(task, "name", None)
    if isinstance(name, str):
        return name
    is_plain = isinstance(task, str | int | float | np.generic) and not isinstance(task, bool)
    return str(task) if is_plain else None


def _generator_state(env: gymnasium.Env[Any, Any], seed: int | None = None) -> Mapping[str, Any]:
    """Return the state of the generator from which the next `env.reset(seed=seed)` draws."""
    generator = env.unwrapped.np_random if seed is None else seeding.np_random(seed)[0]
    return generator.bit_generator.state


class _Column(Monitor[Any, Any]):
    """One column: it has its task as an attribute, and remembers its last episodes only."""

    def __init__(self, env: gymnasium.Env[Any, Any], task: AnyTask) -> None:
        super().__init__(env)
        self.task = task
        self.episode_returns = deque(maxlen=EPISODES_KEPT)  # type: ignore[assignment] # Monitor's lists grow for ever
        self.episode_lengths = deque(maxlen=EPISODES_KEPT)  # type: ignore[assignment]
        self.episode_times = deque(maxlen=EPISODES_KEPT)  # type: ignore[assignment]


def common_shape(tasks: Iterable[AnyTask]) -> CommonShape:
    """The shape that tasks of different shape are padded to; see `CommonShape.of` for the errors."""
    envs = {task.name: as_column(make_env(task)) for task in tasks}
    try:
        return CommonShape.of(envs)
    finally:
        for env in envs.values():
            env.close()


def make_task_vec_env(
    tasks: TaskLike | Iterable[Any],
    envs_per_task: int | Sequence[int] = 4,
    seed: int | None = None,
    variant: str = "aware",
    render_mode: str | None = None,
    one_hot_tasks: TaskLike | Iterable[Any] | None = None,
    step_timeout: float = 0.0,
    pad: bool = False,
) -> TaskVecEnv:
    """Make several copies of each task, as the columns of one vector environment that is stepped in this process.

    The columns are task-major: those of the first task come first, and so on. `get_attr("task")` gives the task of
    every column. A column whose episode ends is reset at once. Its `info` then has the last observation of the episode
    as `"terminal_observation"`, the episode's return and length as `"episode"` (each column is a `Monitor`), and a
    `"TimeLimit.truncated"` that is true if only the time limit ended the episode. The first column of each task is
    reset once here, to see whether its observations fit its space.

    Args:
        tasks: the tasks, as `get_tasks` takes them: names, ids of Gymnasium, addresses, tasks, functions that make an
            environment. They must be distinct, and their spaces must be equal unless `pad`.
        envs_per_task: columns per task, at least 1: a number for all tasks, or one number for each task. Default 4.
        seed: a non-negative integer; see `TaskVecEnv.seed`. Default None: fresh entropy.
        variant: `"aware"` appends a one-hot of the task to the observations, so that their shape is (n + T,) for the
            T tasks in `one_hot_tasks`; images have it beside them (see `TaskOneHot`). `"blind"` leaves them as they
            are. Default `"aware"`.
        render_mode: as in `gymnasium.make`. Default None.
        one_hot_tasks: the tasks that the one-hot distinguishes, in its order. An environment of one task suits a
            model of three tasks if the three are given here. Default None: `tasks`.
        step_timeout: seconds that one step of all columns may take. Default 0: no limit.
        pad: whether tasks may differ in the length of their observations and in their number of actions. Zeros then
            follow shorter observations, up to the longest of all tasks in `one_hot_tasks`, and every task has as many
            actions as the one with most, of which an agent neither takes nor values those that it lacks; numbers of
            actions in a Box then go from -1 to 1, which are each task's own bounds. Default False.

    Observations in Discrete, MultiDiscrete, MultiBinary, Dict and Tuple become vectors by Gymnasium's own flattening. A
    Dict with an image in it stays one. Frames that `FrameStackObservation` has stacked become one image (H, W, S * C).

    Raises:
        ValueError: a task is unknown, given twice or not in `one_hot_tasks`, or does not work; the spaces of tasks
            differ; the variant is unknown, or a number is out of range.
    """
    of_columns = get_tasks(tasks)
    counts = columns_per_task(envs_per_task, of_columns)
    distinguished = of_columns if one_hot_tasks is None else get_tasks(one_hot_tasks)
    shape = common_shape(distinguished) if pad else None
    made: list[gymnasium.Env[Any, Any]] = []

    def column(task: AnyTask, is_first: bool) -> gymnasium.Env[Any, Any]:
        env = make_env(task, render_mode)
        check_new(env, task, made)
        if is_first:
            with Watchdog(step_timeout):
                check_first_observation(env, task)
        return _Column(mark_task(as_column(CheckedSteps(env), shape), task, distinguished, variant), task)

    places = [(task, place) for task, count in zip(of_columns, counts, strict=True) for place in range(count)]
    vec_env = TaskVecEnv([partial(column, task, place == 0) for task, place in places], step_timeout)
    vec_env.seed(seed)
    return vec_env


def check_new(env: gymnasium.Env[Any, Any], task: AnyTask, made: list[gymnasium.Env[Any, Any]]) -> None:
    """Make sure that an environment is none of those that were made before, and add it to them.

    Raises:
        ValueError: it is one of them.
    """
    if any(env.unwrapped is other for other in made):
        raise ValueError(f"the function of task {task.name!r} gives an environment that it gave before, not a new one")
    made.append(env.unwrapped)


def columns_per_task(envs_per_task: int | Sequence[int], tasks: Sequence[AnyTask]) -> list[int]:
    """The number of columns of each task.

    Raises:
        ValueError: a number is below 1, or there is not one number for each task.
    """
    if isinstance(envs_per_task, np.ndarray) and envs_per_task.ndim:
        envs_per_task = envs_per_task.tolist()
    if not isinstance(envs_per_task, Sequence):
        return [check_number("envs_per_task", envs_per_task, least=1, whole=True)] * len(tasks)
    if len(envs_per_task) != len(tasks):
        raise ValueError(
            f"envs_per_task has {len(envs_per_task)} numbers; give one number, or one for each of {len(tasks)} tasks"
        )
    return [
        check_number(f"envs_per_task of {task.name}", count, least=1, whole=True)
        for task, count in zip(tasks, envs_per_task, strict=True)
    ]
