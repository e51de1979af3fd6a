"""Adversarial: a discriminator tells frames from reconstructions, and the model is to deceive it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mtrl.losses.outputs import stacked, widened

AdversarialKind = Literal["non_saturating", "hinge"]


@dataclass(frozen=True)
class AdversarialLoss:
    """The generator's terms, and the discriminator's loss, which is no task's: it has a step and optimizer of its own.

    Terms, all scalars, means over all logits or features:

    * `generator_loss`: softplus(-D(x')) in nats, at least 0 (`"non_saturating"`, Goodfellow et al. 2014,
      https://arxiv.org/abs/1406.2661), or -D(x'), of any sign (`"hinge"`, Miyato et al. 2018,
      https://arxiv.org/abs/1802.05957).
    * `feature_matching_loss`: |f(x) - f(x')|, mean over layers of the mean over features; the observations' features
      get no gradient (Wang et al. 2018, https://arxiv.org/abs/1711.11585). Left out where the model gives none.

    Args:
        kind: `"non_saturating"`, whose loss fits every balancer, or `"hinge"`, whose generator loss is negative once
            the discriminator is deceived, which some refuse. Default `"non_saturating"`.

    Raises:
        ValueError: `kind` is unknown.
    """

    kind: AdversarialKind = "non_saturating"

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in get_args(AdversarialKind):
            raise ValueError(f"unknown kind {self.kind!r}; choose from {', '.join(get_args(AdversarialKind))}")

    def __call__(self, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The generator's terms by name, each ().

        Args:
            outputs: `fake_logits`, and perhaps `real_features` and `fake_features`; see `ModelOutputs`.

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
        """The generator's loss () for the discriminator's `fake_logits`, of any shape, on what it made."""
        return softplus(-fake_logits).mean() if self.kind == "non_saturating" else -fake_logits.mean()

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The discriminator's loss (), at least 0: the mean over real logits and that over fake ones, added.

        softplus(-D(x)) + softplus(D(x')), or max(0, 1 - D(x)) + max(0, 1 + D(x')) for `"hinge"`.

        Args:
            real_logits: of observations, any shape.
            fake_logits: of reconstructions that are detached: the step is the discriminator's alone.

        Raises:
            ValueError: one is no floating-point tensor, or empty.
        """
        real, fake = _logits("real_logits", real_logits), _logits("fake_logits", fake_logits)
        if self.kind == "non_saturating":
            return softplus(-real).mean() + softplus(fake).mean()
        return (1 - real).relu().mean() + (1 + fake).relu().mean()


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the mean of |f(x) - f(x')|, ().

    Args:
        real: features of observations, one tensor per layer, of any shapes; they get no gradient.
        fake: those of reconstructions, of the same shapes.

    Raises:
        ValueError: there are no layers, or they differ in number or shape.
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
