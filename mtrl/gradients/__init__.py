"""Per-task gradients: the rows that every balancer combines.

`T` losses and `D` shared parameters give a Jacobian `J` of shape (T, D) whose row `g_i` is the gradient of loss `i`.
Two engines compute it behind one interface, `with engine.record(): losses = ...` and then `engine.backward(losses)`:

* `AutogradEngine` takes any graph, at the price of T backward passes;
* `TaskMajorEngine` takes task-major batches (row `t * B + b` of every layer's input belongs to task `t`) and needs one
  forward and one backward pass: each layer's weight gradient is a batched product per task instead of one product over
  all rows, so the arithmetic is that of an ordinary backward pass.

`ChainEngine` computes what `TaskMajorEngine` does for a plain chain of layers, from the derivatives of the losses with
respect to its output, without autograd: where networks are small, that is most of an update's time.

`LayerwiseEngine` is an `AutogradEngine` for models so large that T x D numbers are too many to hold. All of them
average over the processes of a data-parallel run (`Ranks`).
"""

from mtrl.gradients.autograd import AutogradEngine, graph_leaves
from mtrl.gradients.chain import Chain, ChainEngine, Step, inference, register_step
from mtrl.gradients.low_memory import JacobianNotHeldError, LayerwiseEngine
from mtrl.gradients.processes import Group, Ranks
from mtrl.gradients.rows import (
    GradientEngine,
    Losses,
    MaskedLosses,
    NonFiniteGradientError,
    ParameterLayout,
    Private,
    TaskGradients,
    accumulate,
    norms_of_rows,
)
from mtrl.gradients.rules import LayerRule, Saved, Scratch, TaskRows, register_rule
from mtrl.gradients.task_major import TaskMajorEngine, UnsupportedLayerError

__all__ = [
    "AutogradEngine",
    "Chain",
    "ChainEngine",
    "GradientEngine",
    "Group",
    "JacobianNotHeldError",
    "LayerRule",
    "LayerwiseEngine",
    "Losses",
    "MaskedLosses",
    "NonFiniteGradientError",
    "ParameterLayout",
    "Private",
    "Ranks",
    "Saved",
    "Scratch",
    "Step",
    "TaskGradients",
    "TaskMajorEngine",
    "TaskRows",
    "UnsupportedLayerError",
    "accumulate",
    "graph_leaves",
    "inference",
    "norms_of_rows",
    "register_rule",
    "register_step",
]
