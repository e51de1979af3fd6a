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
from mtrl.losses import LossAggregator
from mtrl.models import (
    MultiTaskModel,
    SharedEncoder,
    TaskHead,
    generate_synthetic_multi_task_data,
    multi_task_loss,
    task_losses,
)
from mtrl.recorder import Recorder

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
    "LossAggregator",
    "MultiTaskModel",
    "NonFiniteGradientError",
    "PCGrad",
    "RandomLossWeighting",
    "Recorder",
    "SharedEncoder",
    "TaskGradients",
    "TaskHead",
    "TaskMajorEngine",
    "generate_synthetic_multi_task_data",
    "make_balancer",
    "multi_task_loss",
    "register_balancer",
    "task_losses",
]
