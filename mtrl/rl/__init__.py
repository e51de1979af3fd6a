"""Multi-task agents for Stable-Baselines3. This package needs the extra `rl`."""

from typing import TYPE_CHECKING

from mtrl.lazy import import_on_use

if TYPE_CHECKING:
    from mtrl.rl.algorithm import MultiTaskAlgorithm as MultiTaskAlgorithm
    from mtrl.rl.dqn import MultiTaskDQN as MultiTaskDQN
    from mtrl.rl.networks import SharedQNetwork as SharedQNetwork
    from mtrl.rl.nonfinite import NonFiniteError as NonFiniteError
    from mtrl.rl.policies import MultiTaskQPolicy as MultiTaskQPolicy
    from mtrl.rl.replay import TaskBatch as TaskBatch
    from mtrl.rl.replay import TaskReplayBuffer as TaskReplayBuffer
    from mtrl.rl.settings import DQNSettings as DQNSettings
    from mtrl.rl.settings import ReplaySettings as ReplaySettings
    from mtrl.rl.update import SharedUpdate as SharedUpdate
    from mtrl.rl.update import TDLoss as TDLoss
    from mtrl.rl.update import Update as Update

_HOMES = {
    "mtrl.rl.algorithm": ("MultiTaskAlgorithm",),
    "mtrl.rl.dqn": ("MultiTaskDQN",),
    "mtrl.rl.networks": ("SharedQNetwork",),
    "mtrl.rl.nonfinite": ("NonFiniteError",),
    "mtrl.rl.policies": ("MultiTaskQPolicy",),
    "mtrl.rl.replay": ("TaskBatch", "TaskReplayBuffer"),
    "mtrl.rl.settings": ("DQNSettings", "ReplaySettings"),
    "mtrl.rl.update": ("SharedUpdate", "TDLoss", "Update"),
}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__ = import_on_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
