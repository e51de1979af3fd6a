"""All tasks side by side in one Stable-Baselines3 vector environment."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from envs.lunar_lander import Action, Observation, make_task_env
from envs.tasks import DEFAULT_TASKS, LunarLanderTask, TaskLike, get_tasks
from envs.watchdog import Watchdog

__all__ = ["ColumnError", "TaskVecEnv", "make_task_vec_env"]


EPISODES_NOTED = 100
"""Of each column, the last, for `Monitor.get_episode_rewards` and its like."""


class ColumnError(RuntimeError):
    """A column of a `TaskVecEnv` failed; the message is one line that names its task, its seed and what happened."""


class Episode(NamedTuple):
    """What a column's present episode can be played again from."""

    generator: Mapping[str, Any]  # state of the column's generator before the reset that began the episode
    actions: list[Any]  # taken since


class TaskVecEnv(DummyVecEnv):
    """A `DummyVecEnv` whose columns draw from independent random streams, and which can be saved amid its episodes.

    `DummyVecEnv` seeds column i with `seed + i`, so that runs with seeds 0 and 1 share all columns but one; and
    an algorithm made with `seed=k` calls `env.seed(k)`. Hence the override: both ways lead here.

    A physics engine's state can't be saved, but it can be reached again, to the bit: `state_dict` holds each column's
    generator as it was when its episode began and the actions since, and `load_state_dict` takes these actions.

    Args:
        env_fns: make the columns. Each draws from `unwrapped.np_random` alone, as Gymnasium's environments do.
        step_timeout: seconds that one step of all columns may take (see `Watchdog`); 0 for any. Default 0.

    Attributes:
        column_seeds: the seed that each column's stream began with; None where it came from the operating system.
    """

    def __init__(self, env_fns: list[Callable[[], gymnasium.Env[Any, Any]]], step_timeout: float = 0.0) -> None:
        super().__init__(env_fns)
        self.column_seeds: list[int | None] = [None] * self.num_envs
        self._watchdog = Watchdog(step_timeout)
        self._episodes: list[Episode] = []

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

    def reset(self) -> VecEnvObs:
        """Begin an episode in every column; returns the first observations.

        Raises:
            ColumnError: a column failed, or did not answer in time.
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
        """Step every column; one whose episode ends is reset, as in `DummyVecEnv`.

        Raises:
            ColumnError: a column failed, gave an observation of the wrong shape, or did not answer in time. For
                `state_dict` this step has not been.
        """
        begun: dict[int, Episode] = {}
        column = 0
        try:
            with self._watchdog:
                for column, env in enumerate(self.envs):
                    observation, reward, terminated, truncated, info = env.step(self.actions[column])
                    self._keep(column, observation)
                    info = dict(info)  # the environment's own may be the same at every step
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
        """Where every column is, after the last step that all of them took."""
        dtype = self.action_space.dtype
        return {
            "seeds": list(self.column_seeds),
            "episodes": [
                {"generator": dict(episode.generator), "actions": np.array(episode.actions, dtype)}
                for episode in self._episodes
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> VecEnvObs:
        """Go on from where `state_dict` was called; returns the observations there.

        Raises:
            ColumnError: a column can't be brought there.
            ValueError: the state is of another number of columns.
        """
        if len(state["episodes"]) != self.num_envs:
            raise ValueError(f"the state is of {len(state['episodes'])} columns; there are {self.num_envs}")
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

    def _obs_from_buf(self) -> VecEnvObs:
        # One array, under the key of no name: the base class copies the dictionary around it, too.
        return self.buf_obs[None].copy()  # type: ignore[index]

    def _keep(self, column: int, observation: Any) -> None:
        """Put `observation` among those that are returned; NumPy would stretch one of a wrong shape."""
        if np.shape(observation) != self.observation_space.shape:
            raise ValueError(f"an observation of shape {np.shape(observation)}, not {self.observation_space.shape}")
        self._save_obs(column, observation)

    def _failure(self, column: int, error: Exception) -> ColumnError:
        task = getattr(self.get_attr("task", column)[0], "name", None) if self.has_attr("task") else None
        of_task = "" if task is None else f"of task {task} "
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return ColumnError(f"environment {column} {of_task}(seed {self.column_seeds[column]}) failed: {what}")


def _generator_state(env: gymnasium.Env[Any, Any], seed: int | None = None) -> Mapping[str, Any]:
    """State of the generator that the next `env.reset(seed=seed)` draws from."""
    generator = env.unwrapped.np_random if seed is None else seeding.np_random(seed)[0]
    return generator.bit_generator.state


def make_task_vec_env(
    tasks: TaskLike | Iterable[TaskLike] = DEFAULT_TASKS,
    envs_per_task: int = 4,
    seed: int | None = None,
    variant: str = "aware",
    render_mode: str | None = None,
    world: TaskLike | Iterable[TaskLike] | None = None,
    step_timeout: float = 0.0,
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
        step_timeout: seconds that one step of all columns may take; 0 (default) for any.

    Raises:
        UnknownTaskError: a name that no registered task bears.
        ValueError: tasks empty, repeated or not in `world`; `envs_per_task` below 1; unknown variant; negative
            seed or time.
    """
    columns = get_tasks(tasks)
    if envs_per_task < 1:
        raise ValueError(f"envs_per_task must be at least 1, not {envs_per_task}")
    reach = columns if world is None else get_tasks(world)

    def column(task: LunarLanderTask) -> Monitor[Observation, Action]:
        monitor = Monitor(make_task_env(task, tasks=reach, variant=variant, render_mode=render_mode))
        for record in ("episode_returns", "episode_lengths", "episode_times"):  # lists: they would grow for ever
            setattr(monitor, record, deque(maxlen=EPISODES_NOTED))
        return monitor

    vec_env = TaskVecEnv([partial(column, task) for task in columns for _ in range(envs_per_task)], step_timeout)
    vec_env.seed(seed)
    return vec_env
