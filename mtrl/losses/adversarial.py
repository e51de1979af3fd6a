"""Adversarial task: a discriminator tells frames from reconstructions, and the model learns to deceive it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mtrl.limits import check_choice
from mtrl.losses.outputs import stacked, widened

AdversarialKind = Literal["non_saturating", "hinge", "wasserstein"]
"""The form of the adversarial loss: `"non_saturating"`, `"hinge"` or `"wasserstein"`."""


@dataclass(frozen=True)
class AdversarialLoss:
    """The terms of the generator, and the loss of the discriminator.

    The loss of the discriminator belongs to none of the balanced tasks: it has an optimizer and steps of its own.

    Terms, all scalars, each a mean over all logits or features:

    * `generator_loss`: softplus(-D(x')) in nats, at least 0 (`"non_saturating"`, Goodfellow et al. 2014,
      https://arxiv.org/abs/1406.2661), or -D(x'), of any sign (`"hinge"`, Miyato et al. 2018,
      https://arxiv.org/abs/1802.05957, and `"wasserstein"`, Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028).
    * `feature_matching_loss`: |f(x) - f(x')|, the mean over layers of the mean over features. The features of the
      observations get no gradient (Wang et al. 2018, https://arxiv.org/abs/1711.11585). It is left out if the outputs
      hold no features.

    Args:
        kind: `"non_saturating"`, `"hinge"` or `"wasserstein"`. The first suits every balancer. With the others the
            generator's loss becomes negative once the discriminator is deceived, and some balancers refuse negative
            losses. Default `"non_saturating"`.

    Raises:
        ValueError: `kind` is unknown.
    """

    kind: AdversarialKind = "non_saturating"

    def __post_init__(self) -> None:
        """Check the kind."""
        check_choice("kind", self.kind, get_args(AdversarialKind))

    def __call__(self, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The terms of the generator by name, each ().

        Args:
            outputs: `fake_logits`, and optionally `real_features` and `fake_features`; see `ModelOutputs`.

        Raises:
            ValueError: an output is missing or does not fit the others.
        """
        fake = _logits("fake_logits", outputs.get("fake_logits"))
        terms = {"generator_loss": self.generator(fake)}
        real_features, fake_features = outputs.get("real_features"), outputs.get("fake_features")
        if (real_features is None) != (fake_features is None):
            there, missing = ("real", "fake") if fake_features is None else ("fake", "real")
            raise ValueError(f"the outputs have {there}_features and no {missing}_features; give both or neither")
        if real_features is not None and fake_features is not None:
            terms["feature_matching_loss"] = feature_matching(real_features, fake_features)
        return terms

    def generator(self, fake_logits: Tensor) -> Tensor:
        """The loss () of the generator for the discriminator's `fake_logits`, of any shape, on reconstructions."""
        return softplus(-fake_logits).mean() if self.kind == "non_saturating" else -fake_logits.mean()

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The loss () of the discriminator.

        It is the mean of softplus(-D(x)) plus the mean of softplus(D(x')), or for `"hinge"` the mean of
        max(0, 1 - D(x)) plus the mean of max(0, 1 + D(x')), both at least 0. For `"wasserstein"` it is the mean of
        D(x') minus the mean of D(x), to which a multiple of `gradient_penalty` is to be added.

        Args:
            real_logits: D(x) for observations, of any shape.
            fake_logits: D(x') for detached reconstructions, of any shape, so that only the discriminator learns.

        Raises:
            ValueError: one of them is not a floating-point tensor, or is empty.
        """
        real, fake = _logits("real_logits", real_logits), _logits("fake_logits", fake_logits)
        if self.kind == "non_saturating":
            return softplus(-real).mean() + softplus(fake).mean()
        if self.kind == "wasserstein":
            return fake.mean() - real.mean()
        return (1 - real).relu().mean() + (1 + fake).relu().mean()


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Mean over sequences of (|dD/dx| - 1)^2 at points between observations and reconstructions, ().

    Each sequence has a point x = u real + (1 - u) fake with its own u, uniform on (0, 1) (Gulrajani et al. 2017,
    https://arxiv.org/abs/1704.00028).

    Args:
        discriminator: the function from frames to logits, whose sum is differentiated.
        real: observations (B, ...).
        fake: reconstructions (B, ...); neither gets a gradient.
        generator: the generator of u. Default: PyTorch's global generator.
    """
    u = torch.rand(len(real), *[1] * (real.ndim - 1), generator=generator).to(real)
    between = (u * real.detach() + (1 - u) * fake.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    lengths: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1)
    return torch.square(lengths - 1).mean()


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the mean of |f(x) - f(x')|, ().

    Args:
        real: the features of observations, one tensor of any shape per layer; they get no gradient.
        fake: the features of reconstructions, of the same shapes.

    Raises:
        ValueError: there are no layers, or the two differ in number or shape.
    """
    shapes = [[tuple(layer.shape) for layer in layers] for layers in (real, fake)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(f"real_features have the shapes {shapes[0]} and fake_features {shapes[1]}; expected the same")
    differences = [(widened(r).detach() - widened(f)).abs().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(differences).mean()


def _logits(name: str, value: object) -> Tensor:
    logits = stacked(name, value)
    if not logits.is_floating_point() or not logits.numel():
        got = f"{logits.dtype} of the shape {tuple(logits.shape)}"
        raise ValueError(f"{name} is {got}; expected floating point, and not empty")
    return widened(logits)
