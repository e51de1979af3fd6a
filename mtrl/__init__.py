"""Gradient balancing for multi-task learning in PyTorch.

from mtrl import GradNorm

balancer = GradNorm(num_tasks=2)
weights = balancer.backward([loss_a, loss_b])  # in place of (loss_a + loss_b).backward()
optimizer.step()
"""

from mtrl.balancers import (
    AIM,
    RGB,
    Balance,
    Balancer,
    EqualWeights,
    GradNorm,
    GradNormPCGrad,
    PCGrad,
    RandomLossWeighting,
    make_balancer,
    register_balancer,
)
from mtrl.gradients import AutogradEngine, NonFiniteGradientError, TaskGradients, TaskMajorEngine
from mtrl.guidance import LookaheadGuidance

__all__ = [
    "AIM",
    "RGB",
    "AutogradEngine",
    "Balance",
    "Balancer",
    "EqualWeights",
    "GradNorm",
    "GradNormPCGrad",
    "LookaheadGuidance",
    "NonFiniteGradientError",
    "PCGrad",
    "RandomLossWeighting",
    "TaskGradients",
    "TaskMajorEngine",
    "make_balancer",
    "register_balancer",
]
