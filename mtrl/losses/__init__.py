"""The losses of a video world model with four tasks, and the aggregator that makes one loss per task for a balancer.

`ModelOutputs` describes the outputs of the model. From them `ELBOLoss`, `PerceiverLoss`, `PredictiveLoss` and
`AdversarialLoss`, each in its own file, compute terms. `LossAggregator` weighs the terms and adds them up by task:

    losses, task_losses = LossAggregator().compute_losses(model.forward_sequence(observations, actions), observations)
    RGB().backward(task_losses)
"""

from mtrl.losses.adversarial import AdversarialKind, AdversarialLoss, feature_matching, gradient_penalty
from mtrl.losses.aggregator import TASKS, TOTALS, LossAggregator, loss_metrics
from mtrl.losses.divergences import categorical_kl, entropy, gamma_kl, gaussian_kl
from mtrl.losses.elbo import ELBOLoss, assignment_kl, attention_kl, mixture_kl, sampled_mixture_kl
from mtrl.losses.gram import gram_distance, gram_penalty
from mtrl.losses.learning_rate import parameter_groups
from mtrl.losses.outputs import ModelOutputs, OutputReader
from mtrl.losses.perceiver import PerceiverLoss, perplexity
from mtrl.losses.predictive import PredictiveLoss, attention_dynamics, centres, movement_error, overlap
from mtrl.losses.published import published_losses
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
    "centres",
    "entropy",
    "expected_log_sticks",
    "expected_log_weights",
    "feature_matching",
    "gamma_kl",
    "gaussian_kl",
    "gradient_penalty",
    "gram_distance",
    "gram_penalty",
    "kumaraswamy_beta_kl",
    "loss_metrics",
    "mixture_kl",
    "movement_error",
    "overlap",
    "parameter_groups",
    "perplexity",
    "published_losses",
    "sample_sticks",
    "sampled_mixture_kl",
    "stick_weights",
]
