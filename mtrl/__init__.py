"""Gradient balancing for multi-task learning in PyTorch.

from mtrl import GradNorm

balancer = GradNorm(num_tasks=2)
weights = balancer.backward([loss_a, loss_b])  # in place of (loss_a + loss_b).backward()
optimizer.step()

The agents for Stable-Baselines3 are in `mtrl.rl`, which needs the extra `rl`.
"""

from typing import TYPE_CHECKING

from mtrl.lazy import import_on_use

if TYPE_CHECKING:
    from mtrl.balancers import AIM as AIM
    from mtrl.balancers import RGB as RGB
    from mtrl.balancers import Balance as Balance
    from mtrl.balancers import Balancer as Balancer
    from mtrl.balancers import EqualWeights as EqualWeights
    from mtrl.balancers import GradNorm as GradNorm
    from mtrl.balancers import GradNormPCGrad as GradNormPCGrad
    from mtrl.balancers import MemoryBalancer as MemoryBalancer
    from mtrl.balancers import NormalisedGradients as NormalisedGradients
    from mtrl.balancers import PCGrad as PCGrad
    from mtrl.balancers import RandomLossWeighting as RandomLossWeighting
    from mtrl.balancers import StaticWeights as StaticWeights
    from mtrl.balancers import make_balancer as make_balancer
    from mtrl.balancers import register_balancer as register_balancer
    from mtrl.gradients import AutogradEngine as AutogradEngine
    from mtrl.gradients import NonFiniteGradientError as NonFiniteGradientError
    from mtrl.gradients import TaskGradients as TaskGradients
    from mtrl.gradients import TaskMajorEngine as TaskMajorEngine
    from mtrl.guidance import LookaheadGuidance as LookaheadGuidance
    from mtrl.losses import LossAggregator as LossAggregator
    from mtrl.memory import DirectionMemory as DirectionMemory
    from mtrl.models import MultiTaskModel as MultiTaskModel
    from mtrl.models import SharedEncoder as SharedEncoder
    from mtrl.models import TaskHead as TaskHead
    from mtrl.models import generate_synthetic_multi_task_data as generate_synthetic_multi_task_data
    from mtrl.models import multi_task_loss as multi_task_loss
    from mtrl.models import task_losses as task_losses
    from mtrl.recorder import Recorder as Recorder

__version__ = "1.0.0"  # of the distribution mtrl-balance, too: pyproject.toml reads it here

_HOMES = {
    "mtrl.balancers": (
        "AIM",
        "RGB",
        "Balance",
        "Balancer",
        "EqualWeights",
        "GradNorm",
        "GradNormPCGrad",
        "MemoryBalancer",
        "NormalisedGradients",
        "PCGrad",
        "RandomLossWeighting",
        "StaticWeights",
        "make_balancer",
        "register_balancer",
    ),
    "mtrl.gradients": ("AutogradEngine", "NonFiniteGradientError", "TaskGradients", "TaskMajorEngine"),
    "mtrl.guidance": ("LookaheadGuidance",),
    "mtrl.losses": ("LossAggregator",),
    "mtrl.memory": ("DirectionMemory",),
    "mtrl.models": (
        "MultiTaskModel",
        "SharedEncoder",
        "TaskHead",
        "generate_synthetic_multi_task_data",
        "multi_task_loss",
        "task_losses",
    ),
    "mtrl.recorder": ("Recorder",),
    "mtrl.checkpoint": (),
    "mtrl.conflict": (),
    "mtrl.states": (),
}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__ = import_on_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
