"""Multi-task agents for Stable-Baselines3."""

from agents.multitask_dqn import MultiTaskDQN
from agents.networks import SharedQNetwork
from agents.policies import MultiTaskQPolicy
from agents.replay import TaskBatch, TaskReplayBuffer

__all__ = ["MultiTaskDQN", "MultiTaskQPolicy", "SharedQNetwork", "TaskBatch", "TaskReplayBuffer"]
