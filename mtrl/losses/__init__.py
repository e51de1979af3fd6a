"""The losses of a video world model with four tasks, and the aggregator that makes one loss per task for a balancer.

`ModelOutputs` describes the outputs of the model. From them `ELBOLoss`, `PerceiverLoss`, `PredictiveLoss` and
`AdversarialLoss`, each in its own file, compute terms. `LossAggregator` weighs the terms and adds them up by task:

    losses, task_losses = LossAggregator().compute_losses(model.forward_sequence(observations, actions), observations)
    RGB().backward(task_losses)
"""

from mtrl.losses.adversarial import AdversarialKind, AdversarialLoss, feature_matching
from mtrl.losses.aggregator import TASKS, TOTALS, LossAggregator, loss_metrics
from mtrl.losses.divergences import categorical_kl, entropy, gaussian_kl
from mtrl.losses.elbo import ELBOLoss, assignment_kl, attention_kl, gram_distance, gram_penalty, mixture_kl
from mtrl.losses.learning_rate import parameter_groups
from mtrl.losses.outputs import ModelOutputs, OutputReader
from mtrl.losses.perceiver import PerceiverLoss, perplexity
from mtrl.losses.predictive import PredictiveLoss, attention_dynamics, overlap
from mtrl.losses.schedule import Constant, Cosine, Cyclical, Linear, Schedule
from mtrl.losses.sticks import (
    expected_log_sticks,
    expected_log_weights,
    kumaraswamy_beta_kl,
    sample_sticks,
    stick_weights,
)

__all__ = [
    "TASKS",
    "TOTALS",
    "AdversarialKind",
    "AdversarialLoss",
    "Constant",
    "Cosine",
    "Cyclical",
    "ELBOLoss",
    "Linear",
    "LossAggregator",
    "ModelOutputs",
    "OutputReader",
    "PerceiverLoss",
    "PredictiveLoss",
    "Schedule",
    "assignment_kl",
    "attention_dynamics",
    "attention_kl",
    "categorical_kl",
    "entropy",
    "expected_log_sticks",
    "expected_log_weights",
    "feature_matching",
    "gaussian_kl",
    "gram_distance",
    "gram_penalty",
    "kumaraswamy_beta_kl",
    "loss_metrics",
    "mixture_kl",
    "overlap",
    "parameter_groups",
    "perplexity",
    "sample_sticks",
    "stick_weights",
]
