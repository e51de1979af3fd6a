"""Multi-task agents for Stable-Baselines3, and the tasks that they learn. This package needs the extra `rl`."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from mtrl.lazy import import_on_use

if TYPE_CHECKING:
    from mtrl.rl.actor_critic import MultiTaskSACPolicy as MultiTaskSACPolicy
    from mtrl.rl.algorithm import MultiTaskAlgorithm as MultiTaskAlgorithm
    from mtrl.rl.callbacks import TaskEvalCallback as TaskEvalCallback
    from mtrl.rl.dqn import MultiTaskDQN as MultiTaskDQN
    from mtrl.rl.episodes import succeeded as succeeded
    from mtrl.rl.evaluation import TaskReturns as TaskReturns
    from mtrl.rl.evaluation import evaluate_tasks as evaluate_tasks
    from mtrl.rl.networks import SharedQNetwork as SharedQNetwork
    from mtrl.rl.nonfinite import NonFiniteError as NonFiniteError
    from mtrl.rl.policies import MultiTaskQPolicy as MultiTaskQPolicy
    from mtrl.rl.replay import TaskBatch as TaskBatch
    from mtrl.rl.replay import TaskReplayBuffer as TaskReplayBuffer
    from mtrl.rl.reward_scales import RewardScales as RewardScales
    from mtrl.rl.sac import MultiTaskSAC as MultiTaskSAC
    from mtrl.rl.settings import DQNSettings as DQNSettings
    from mtrl.rl.settings import ReplaySettings as ReplaySettings
    from mtrl.rl.settings import SACSettings as SACSettings
    from mtrl.rl.tasks import AnyTask as AnyTask
    from mtrl.rl.tasks import GymTask as GymTask
    from mtrl.rl.tasks import Task as Task
    from mtrl.rl.tasks import TaskLike as TaskLike
    from mtrl.rl.tasks import UnknownTaskError as UnknownTaskError
    from mtrl.rl.tasks import get_task as get_task
    from mtrl.rl.tasks import get_tasks as get_tasks
    from mtrl.rl.tasks import make_env as make_env
    from mtrl.rl.tasks import register_group as register_group
    from mtrl.rl.tasks import register_task as register_task
    from mtrl.rl.tasks import solved_at as solved_at
    from mtrl.rl.td_loss import TDLoss as TDLoss
    from mtrl.rl.update import SharedUpdate as SharedUpdate
    from mtrl.rl.update import Update as Update
    from mtrl.rl.value_scales import ValueScales as ValueScales
    from mtrl.rl.vec_env import ColumnError as ColumnError
    from mtrl.rl.vec_env import TaskVecEnv as TaskVecEnv
    from mtrl.rl.vec_env import make_task_vec_env as make_task_vec_env
    from mtrl.rl.wrappers import PaddedTask as PaddedTask
    from mtrl.rl.wrappers import TaskOneHot as TaskOneHot

for _package in ("gymnasium", "stable_baselines3", "psutil"):
    if find_spec(_package) is None:
        raise ModuleNotFoundError(f"mtrl.rl needs {_package}: pip install 'mtrl-balance[rl]'", name=_package)

_HOMES = {
    "mtrl.rl.algorithm": ("MultiTaskAlgorithm",),
    "mtrl.rl.callbacks": ("TaskEvalCallback",),
    "mtrl.rl.dqn": ("MultiTaskDQN",),
    "mtrl.rl.episodes": ("succeeded",),
    "mtrl.rl.evaluation": ("TaskReturns", "evaluate_tasks"),
    "mtrl.rl.networks": ("SharedQNetwork",),
    "mtrl.rl.nonfinite": ("NonFiniteError",),
    "mtrl.rl.actor_critic": ("MultiTaskSACPolicy",),
    "mtrl.rl.policies": ("MultiTaskQPolicy",),
    "mtrl.rl.replay": ("TaskBatch", "TaskReplayBuffer"),
    "mtrl.rl.reward_scales": ("RewardScales",),
    "mtrl.rl.value_scales": ("ValueScales",),
    "mtrl.rl.sac": ("MultiTaskSAC",),
    "mtrl.rl.settings": ("DQNSettings", "ReplaySettings", "SACSettings"),
    "mtrl.rl.tasks": (
        *("AnyTask", "GymTask", "Task", "TaskLike", "UnknownTaskError", "get_task", "get_tasks"),
        *("make_env", "register_group", "register_task", "solved_at"),
    ),
    "mtrl.rl.td_loss": ("TDLoss",),
    "mtrl.rl.update": ("SharedUpdate", "Update"),
    "mtrl.rl.vec_env": ("ColumnError", "TaskVecEnv", "make_task_vec_env"),
    "mtrl.rl.wrappers": ("PaddedTask", "TaskOneHot"),
}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__ = import_on_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
