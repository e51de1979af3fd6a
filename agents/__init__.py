"""Multi-task agents for Stable-Baselines3."""

from agents.brc import BRC, BRCPolicy, BroNet
from agents.independent_dqn import IndependentDQN, IndependentQPolicy
from agents.loading import load_agent
from agents.multitask_dqn import MultiTaskDQN
from agents.networks import IndependentQNetworks, SharedQNetwork
from agents.nonfinite import NonFiniteError
from agents.policies import MultiTaskQPolicy
from agents.replay import TaskBatch, TaskReplayBuffer

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
