"""Multi-task agents for Stable-Baselines3."""

from agents.brc import BRC, BRCPolicy, BroNet
from agents.independent_dqn import IndependentDQN, IndependentQPolicy
from agents.loading import load_agent
from mtrl.rl.dqn import MultiTaskDQN
from mtrl.rl.networks import IndependentQNetworks, SharedQNetwork
from mtrl.rl.nonfinite import NonFiniteError
from mtrl.rl.policies import MultiTaskQPolicy
from mtrl.rl.replay import TaskBatch, TaskReplayBuffer

__all__ = [
    "BRC",
    "BRCPolicy",
    "BroNet",
    "IndependentDQN",
    "IndependentQNetworks",
    "IndependentQPolicy",
    "MultiTaskDQN",
    "MultiTaskQPolicy",
    "NonFiniteError",
    "SharedQNetwork",
    "TaskBatch",
    "TaskReplayBuffer",
    "load_agent",
]
