"""The agents that the study compares with `MultiTaskDQN`. This package hands on that one and `MultiTaskSAC`, too."""

from typing import TYPE_CHECKING

from mtrl.lazy import import_on_use

if TYPE_CHECKING:
    from agents.brc import BRC as BRC
    from agents.brc import BRCPolicy as BRCPolicy
    from agents.brc import BroNet as BroNet
    from agents.independent_dqn import IndependentDQN as IndependentDQN
    from agents.independent_dqn import IndependentQNetworks as IndependentQNetworks
    from agents.independent_dqn import IndependentQPolicy as IndependentQPolicy
    from agents.loading import load_agent as load_agent
    from agents.settings import BRCSettings as BRCSettings
    from mtrl.rl.algorithm import MultiTaskAlgorithm as MultiTaskAlgorithm
    from mtrl.rl.dqn import MultiTaskDQN as MultiTaskDQN
    from mtrl.rl.networks import SharedQNetwork as SharedQNetwork
    from mtrl.rl.nonfinite import NonFiniteError as NonFiniteError
    from mtrl.rl.policies import MultiTaskQPolicy as MultiTaskQPolicy
    from mtrl.rl.replay import TaskBatch as TaskBatch
    from mtrl.rl.replay import TaskReplayBuffer as TaskReplayBuffer
    from mtrl.rl.sac import MultiTaskSAC as MultiTaskSAC

_HOMES = {
    "agents.brc": ("BRC", "BRCPolicy", "BroNet"),
    "agents.independent_dqn": ("IndependentDQN", "IndependentQNetworks", "IndependentQPolicy"),
    "agents.loading": ("load_agent",),
    "agents.settings": ("BRCSettings",),
    "mtrl.rl.algorithm": ("MultiTaskAlgorithm",),
    "mtrl.rl.dqn": ("MultiTaskDQN",),
    "mtrl.rl.networks": ("SharedQNetwork",),
    "mtrl.rl.nonfinite": ("NonFiniteError",),
    "mtrl.rl.policies": ("MultiTaskQPolicy",),
    "mtrl.rl.replay": ("TaskBatch", "TaskReplayBuffer"),
    "mtrl.rl.sac": ("MultiTaskSAC",),
}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__ = import_on_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
