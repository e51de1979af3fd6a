"""Gradient balancing for multi-task learning in PyTorch.

from mtrl import GradNorm

balancer = GradNorm(num_tasks=2)
weights = balancer.backward([loss_a, loss_b])  # in place of (loss_a + loss_b).backward()
optimizer.step()
"""

from mtrl.balancers import (
    Balance,
    Balancer,
    EqualWeights,
    GradNorm,
    make_balancer,
    register_balancer,
)
from mtrl.gradients import AutogradEngine, NonFiniteGradientError, TaskGradients, TaskMajorEngine

__all__ = [
    "AutogradEngine",
    "Balance",
    "Balancer",
    "EqualWeights",
    "GradNorm",
    "NonFiniteGradientError",
    "TaskGradients",
    "TaskMajorEngine",
    "make_balancer",
    "register_balancer",
]
