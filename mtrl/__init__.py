"""Gradient balancing for multi-task learning in PyTorch.

from mtrl import GradNorm

balancer = GradNorm(num_tasks=2)
weights = balancer.backward([loss_a, loss_b])  # in place of (loss_a + loss_b).backward()
optimizer.step()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = ("balancers", "gradients", "guidance", "losses", "models", "recorder", "checkpoint", "conflict")


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` when it is first asked for: `import mtrl.files` needs no PyTorch."""
    if name in _MODULES:
        return import_module(f"mtrl.{name}")
    if name in __all__:
        for home in _MODULES:
            if hasattr(module := import_module(f"mtrl.{home}"), name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES, *__all__]
