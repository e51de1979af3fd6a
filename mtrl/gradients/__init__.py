"""Per-task gradients: the rows that every balancer combines.

`T` losses and `D` shared parameters give a Jacobian `J` of shape (T, D), and its row `g_i` is the gradient of loss `i`.
There are four engines. The first two have one interface: `with engine.record(): losses = ...`, and then
`engine.backward(losses)`.

* `AutogradEngine` works for any graph and takes T backward passes.
* `TaskMajorEngine` works for task-major batches, in which row `t * B + b` of every layer's input belongs to task `t`.
  It takes one forward and one backward pass: the weight gradient of a layer is one batched product with a factor per
  task instead of one product over all rows, so that the arithmetic is that of an ordinary backward pass.
* `ChainEngine` gives the rows of `TaskMajorEngine` for a plain chain of layers. It starts from the gradients of the
  losses with respect to the chain's output and does without autograd, which takes most of an update's time if networks
  are small.
* `LayerwiseEngine` is an `AutogradEngine` for models that are so large that T x D numbers are too many to hold.

Each engine averages its rows over the processes of a data-parallel run (`Ranks`).
"""

from mtrl.gradients.autograd import AutogradEngine
from mtrl.gradients.chain import Chain, ChainEngine, inference
from mtrl.gradients.graph import graph_leaves
from mtrl.gradients.layout import ParameterLayout, Parameters, accumulate, as_parameters
from mtrl.gradients.low_memory import JacobianNotHeldError, LayerwiseEngine
from mtrl.gradients.processes import Group, Ranks
from mtrl.gradients.roots import MaskedLosses, by_task
from mtrl.gradients.rows import (
    GradientEngine,
    LooksAt,
    Losses,
    NonFiniteGradientError,
    Private,
    TaskGradients,
    TaskRows,
    norms_of_rows,
)
from mtrl.gradients.steps import Step, register_step
from mtrl.gradients.task_major import LayerRule, Saved, TaskMajorEngine, UnsupportedLayerError, register_rule

__all__ = [
    "AutogradEngine",
    "Chain",
    "ChainEngine",
    "GradientEngine",
    "Group",
    "JacobianNotHeldError",
    "LayerRule",
    "LayerwiseEngine",
    "LooksAt",
    "Losses",
    "MaskedLosses",
    "NonFiniteGradientError",
    "ParameterLayout",
    "Parameters",
    "Private",
    "Ranks",
    "Saved",
    "Step",
    "TaskGradients",
    "TaskMajorEngine",
    "TaskRows",
    "UnsupportedLayerError",
    "accumulate",
    "as_parameters",
    "by_task",
    "graph_leaves",
    "inference",
    "norms_of_rows",
    "register_rule",
    "register_step",
]
