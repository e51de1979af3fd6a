"""The outputs of a video model from which the losses are computed: their names, their shapes, and a check of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

Steps = Tensor | Sequence[Tensor]  # (B, T, ...), or T tensors (B, ...)


class ModelOutputs(TypedDict):
    """The outputs of a model's `forward_sequence(observations, actions)`, as `LossAggregator` takes them.

    Sizes: B sequences; T frames of C channels and H x W pixels; D latent dimensions; K components of the mixture prior;
    S slots of F features, each with an attention map of h x w positions; E numbers per token. In place of a tensor
    (B, T, ...), the losses also take a list of T tensors (B, ...). Shapes are checked, but values are not. The numbers
    of a categorical distribution must be non-negative with sum 1. Log-variances are clamped to [-30, 30].

    ELBO:
        reconstruction: (B, T, C, H, W), the mean of p(x | z), in the units of the observations.
        latent_mean, latent_log_variance: (B, T, D), of q(z | x), a diagonal Gaussian.
        prior_mean, prior_log_variance: (K, D), or (B, T, K, D) if they depend on the past: the components of the prior.
        responsibilities: (B, T, K), the categorical distribution q(c | x) over components.
        stick_a, stick_b: (K - 1,) or (B, T, K - 1), positive: Kumaraswamy(a, b) posteriors of the sticks.
        slots: (B, T, S, F), the features from which the Gram matrix is computed.
        attention: (B, T, S, h, w), for each slot a categorical distribution over the h w positions.
        attention_prior: (B, T, S, h, w), the maps to compare `attention` with, or (B, T - 1, S, h, w) for all frames
            but the first, such as their predictions. Default: uniform maps.
        reconstruction_nll: (B, T), -log p(x | z) in nats, where p is no Gaussian; then `reconstruction` is not needed.
        mixing_weights: (K,) or (B, T, K), the weights pi of the mixture, for `latent_kl="sampled"` and
            `cluster_entropy="two_parts"`.
        concentration_shape, concentration_rate: (B, T), positive: a Gamma posterior of the sticks' alpha.
        encoder_features, teacher_features: one tensor (..., N, F) of N places, or one for each level, for
            `gram="teacher"`; then `slots` are not needed.
        unrolled: (B, U, C, H, W), predictions of the last U frames, U below T, each from the model's own frame before
            it. Default: none, and no loss of them.

    Perceiver:
        token_encoding: (B, ..., E), the encoder's vectors before quantisation.
        token_code: (B, ..., E), the chosen rows of the codebook, with the gradient to the codebook. They must not go
            through the straight-through estimator, which is meant for the input of the decoder alone.
        token_index: (B, ...), integers, the numbers of the chosen rows.
        next_token_logits: (B, T - 1, ..., V): at place t, the logits of `token_index[:, t + 1]` from the frames up to t
            and the action. Default: none, and no loss of them.
        perceiver_reconstruction: (B, T, C, H, W), decoded from the codes.
        token_logits: (B, ..., V), predictions of `token_index` among V codes, for `reconstruction="tokens"` of
            `PerceiverLoss`; then `perceiver_reconstruction` is not needed.

    Predictive:
        predicted_attention: (B, T - 1, S, h, w): at place t, the prediction of `attention[:, t + 1]` from the frames up
            to t and the action.
        predicted_movement: (B, T - 1, S, 2), the predicted movements of the maps' centres of mass along x and y, in
            cells, for `dynamics="movement"` of `PredictiveLoss`; then `predicted_attention` is not needed.

    Adversarial:
        fake_logits: of any shape, the discriminator's logits for the reconstruction, attached to the graph. The
            parameters of the discriminator are frozen (`requires_grad_(False)`), so that they get no gradient. Without
            `fake_logits` the task is left out.
        real_features, fake_features: one tensor per layer, of the same shapes: the discriminator's features of the
            observations and of the reconstruction. Give both or neither.
    """

    reconstruction: Tensor
    latent_mean: Tensor
    latent_log_variance: Tensor
    prior_mean: Tensor
    prior_log_variance: Tensor
    responsibilities: Tensor
    stick_a: Tensor
    stick_b: Tensor
    slots: Tensor
    attention: Tensor
    attention_prior: NotRequired[Tensor]
    reconstruction_nll: NotRequired[Tensor]
    mixing_weights: NotRequired[Tensor]
    concentration_shape: NotRequired[Tensor]
    concentration_rate: NotRequired[Tensor]
    encoder_features: NotRequired[Tensor | Sequence[Tensor]]
    teacher_features: NotRequired[Tensor | Sequence[Tensor]]
    unrolled: NotRequired[Tensor]
    token_encoding: Tensor
    token_code: Tensor
    token_index: Tensor
    next_token_logits: NotRequired[Tensor]
    perceiver_reconstruction: Tensor
    token_logits: NotRequired[Tensor]
    predicted_attention: Tensor
    predicted_movement: NotRequired[Tensor]
    fake_logits: NotRequired[Tensor]
    real_features: NotRequired[Sequence[Tensor]]
    fake_features: NotRequired[Sequence[Tensor]]


class OutputReader:
    """Reads tensors from the outputs of a model, and checks that their shapes agree with each other.

    Args:
        outputs: see `ModelOutputs`; other keys are ignored.
        observations: (B, T, C, H, W), floating point.

    Attributes:
        observations: the observations as one tensor.
        sizes: by letter, the sizes that are known from the tensors read so far.

    Raises:
        ValueError: `observations` has another shape.
    """

    def __init__(self, outputs: Mapping[str, Any], observations: Steps) -> None:
        self.outputs = outputs
        self.sizes: dict[str, int] = {}
        self.observations = self._checked("observations", observations, ("B T C H W",))

    def __contains__(self, name: str) -> bool:
        return self.outputs.get(name) is not None

    def __call__(self, name: str, *forms: str) -> Tensor:
        """The tensor `name`, whose shape must be one of `forms`, such as `"K D"` or `"B T-1"`.

        Raises:
            ValueError: the tensor is missing, not of floating point, empty, or of another shape; the message gives the
                name and the expected shape.
        """
        if name not in self:
            raise ValueError(f"the outputs have no {name!r}; expected a tensor {_shapes(forms)}")
        return self._checked(name, self.outputs[name], forms)

    def _checked(self, name: str, value: object, forms: Sequence[str]) -> Tensor:
        tensor = stacked(name, value)
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is of {tensor.dtype}; expected floating point")
        for form in forms:
            letters = form.split()
            if tensor.ndim == len(letters) and tensor.numel():
                sizes = dict(self.sizes)
                for letter, size in zip(letters, tensor.shape, strict=True):
                    base, _, less = letter.partition("-")
                    whole = size + int(less or 0)
                    if whole != (int(base) if base.isdigit() else sizes.setdefault(base, whole)):
                        break
                else:
                    self.sizes = sizes
                    return widened(tensor)
        used = {letter.partition("-")[0] for form in forms for letter in form.split()}
        known = ", ".join(f"{letter} = {size}" for letter, size in self.sizes.items() if letter in used)
        expected = _shapes(forms) + (f" with {known}" if known else "")
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; expected {expected}, none of them 0")


def stacked(name: str, value: object) -> Tensor:
    """`value` as one tensor: a sequence of T tensors (B, ...) becomes (B, T, ...).

    Raises:
        ValueError: `value` is neither a tensor nor a sequence of tensors of one shape; the message calls it `name`.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(step, Tensor) for step in value):
        shapes = {tuple(step.shape) for step in value}
        if len(shapes) > 1 or shapes == {()}:
            raise ValueError(f"{name} is a list of tensors of the shapes {sorted(shapes)}; expected one shape (B, ...)")
        return torch.stack(list(value), dim=1)
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}; expected a tensor, or a list with a tensor per frame")
    return value


def widened(tensor: Tensor) -> Tensor:
    """`tensor`, converted to float32 if it is of half precision, because losses sum thousands of numbers."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _shapes(forms: Sequence[str]) -> str:
    return " or ".join(f"({', '.join(form.split())})" for form in forms)
