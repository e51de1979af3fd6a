"""What a video model hands to the losses: names, shapes, and the check that they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

Steps = Tensor | Sequence[Tensor]  # (B, T, ...), or T tensors (B, ...)


class ModelOutputs(TypedDict):
    """The contract between a model's `forward_sequence(observations, actions)` and `LossAggregator`.

    Sizes: B sequences, T frames of C channels and H x W pixels; D latent dimensions; K components of the mixture prior;
    S slots of F features, each with an attention map of h x w positions; E numbers per token. In place of (B, T, ...)
    the losses also take a list of T tensors (B, ...). Shapes are checked, values are not: a categorical distribution
    is non-negative and sums to 1, log-variances are held within [-30, 30].

    ELBO:
        reconstruction: (B, T, C, H, W), the mean of p(x | z), in the units of the observations.
        latent_mean, latent_log_variance: (B, T, D), of q(z | x), a diagonal Gaussian.
        prior_mean, prior_log_variance: (K, D), or (B, T, K, D) where they depend on the past: the prior's components.
        responsibilities: (B, T, K), q(c | x), how much each component answers for a frame; over K it sums to 1.
        stick_a, stick_b: (K - 1,), or (B, T, K - 1): Kumaraswamy(a, b) posteriors of the sticks, positive.
        slots: (B, T, S, F), features of which the Gram matrix is taken.
        attention: (B, T, S, h, w), categorical over the h w positions: each slot's map sums to 1.
        attention_prior: (B, T, S, h, w), what the maps are compared with; left out, it is uniform.

    Perceiver:
        token_encoding: (B, ..., E), the encoder's vectors before quantisation.
        token_code: as token_encoding, the rows of the codebook that were chosen, as they are: with the gradient to the
            codebook, and without the straight-through estimator, which belongs to the decoder's input alone.
        token_index: (B, ...), integers: which rows.
        perceiver_reconstruction: (B, T, C, H, W), decoded from the codes.

    Predictive:
        predicted_attention: (B, T - 1, S, h, w): at place t, what was predicted for `attention[:, t + 1]` from what was
            known at t and the action.

    Adversarial, where there is a discriminator; without `fake_logits` the task is left out:
        fake_logits: any shape: the discriminator on the reconstruction, attached to the graph, with the
            discriminator's own parameters frozen (`requires_grad_(False)`) so that they get no gradient of this.
        real_features, fake_features: tensors of the same shapes, one per layer: the discriminator's features of the
            observations and of the reconstruction. Both or neither.
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
    token_encoding: Tensor
    token_code: Tensor
    token_index: Tensor
    perceiver_reconstruction: Tensor
    predicted_attention: Tensor
    fake_logits: NotRequired[Tensor]
    real_features: NotRequired[Sequence[Tensor]]
    fake_features: NotRequired[Sequence[Tensor]]


class OutputReader:
    """Takes tensors out of a model's outputs, each only in the shape that the others leave for it.

    Args:
        outputs: see `ModelOutputs`; keys that are not read are ignored.
        observations: (B, T, C, H, W), floating point.

    Attributes:
        observations: the same, as one tensor.
        sizes: the sizes that the tensors read so far have agreed on, by letter.

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
        """The tensor `name`, in one of `forms`, such as `"K D"`; a size may be `"T-1"`.

        Raises:
            ValueError: it is missing, no floating-point tensor, empty, or of another shape; the message has the name
                and the shape that was expected.
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
                    if sizes.setdefault(base, size + int(less or 0)) != size + int(less or 0):
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
        ValueError: it is neither a tensor nor a sequence of tensors of one shape; the message calls it `name`.
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
    """`tensor`, in float32 if it is of half precision: losses sum over thousands of numbers."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _shapes(forms: Sequence[str]) -> str:
    return " or ".join(f"({', '.join(form.split())})" for form in forms)
