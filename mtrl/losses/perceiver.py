"""Perceiver task: the reconstruction of the video by a tokenizer with a codebook, and the use of the codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mtrl.limits import check_number
from mtrl.losses.outputs import OutputReader, Steps, stacked, widened


@dataclass(frozen=True)
class PerceiverLoss:
    """Vector quantisation of tokens (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937) and reconstruction.

    Terms, all scalars:

    * `vq_commitment_loss`: the mean over tokens and their E numbers of (z - sg(e))^2, where sg stops the gradient. It
      keeps tokens z near their codes e.
    * `vq_codebook_loss`: the mean of (sg(z) - e)^2, the same number with another gradient. It moves codes towards their
      tokens. If the codebook follows by moving averages, e has no gradient, and this term is a constant.
    * `perceiver_recon_loss`: the mean over frames, channels and pixels of (x - x')^2/sigma^2.
    * `codebook_perplexity`: the exponential of the entropy of the frequencies of the codes in the batch, from 1 (one
      code is used) to the number of codes (all are used equally). It is a metric without a gradient.

    * `next_token_loss`, if the outputs hold `token_logits`: the cross-entropy of the next frame's tokens, in nats per
      token, a mean over all tokens.

    The losses are means and not sums, so that their weights do not depend on the sizes of frames and tokens.

    Args:
        observation_std: sigma, in the units of the observations, above 0. Default 1.0.

    Raises:
        ValueError: `observation_std` is out of range.
    """

    observation_std: float = 1.0

    def __post_init__(self) -> None:
        """Check the range."""
        check_number("observation_std", self.observation_std, above=0)

    def __call__(self, outputs: Mapping[str, Any], observations: Steps) -> dict[str, Tensor]:
        """The terms by name, each ().

        Args:
            outputs: see `ModelOutputs`.
            observations: (B, T, C, H, W).

        Raises:
            ValueError: an output is missing or has the wrong shape or type.
        """
        read = OutputReader(outputs, observations)
        reconstruction = read("perceiver_reconstruction", "B T C H W")
        encoding, code, index = tokens(outputs)
        terms = {
            "vq_commitment_loss": (encoding - code.detach()).square().mean(),
            "vq_codebook_loss": (encoding.detach() - code).square().mean(),
            "perceiver_recon_loss": ((reconstruction - read.observations) / self.observation_std).square().mean(),
            "codebook_perplexity": perplexity(index).to(encoding.dtype),
        }
        if outputs.get("token_logits") is not None:
            logits = widened(stacked("token_logits", outputs["token_logits"]))
            if logits.shape[:-1] != index[:, 1:].shape or not logits.numel():
                expected = (
                    f"({', '.join(map(str, index[:, 1:].shape))}, codes), as token_index has {tuple(index.shape)}"
                )
                raise ValueError(f"token_logits has the shape {tuple(logits.shape)}; expected {expected}")
            terms["next_token_loss"] = cross_entropy(logits.flatten(0, -2), index[:, 1:].flatten())
        return terms


def tokens(outputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """`token_encoding` (B, ..., E), `token_code` (B, ..., E) and `token_index` (B, ...).

    Raises:
        ValueError: one of them is missing or does not fit the others.
    """
    names = ("token_encoding", "token_code", "token_index")
    for name in names:
        if outputs.get(name) is None:
            raise ValueError(f"the outputs have no {name!r}; tokens need {', '.join(names)}")
    encoding, code, index = (stacked(name, outputs[name]) for name in names)
    if encoding.ndim < 2 or not encoding.numel() or not encoding.is_floating_point():
        got = f"{encoding.dtype} of the shape {tuple(encoding.shape)}"
        raise ValueError(f"token_encoding is {got}; expected floating point (B, ..., E), none of them 0")
    if code.shape != encoding.shape:
        raise ValueError(
            f"token_code has the shape {tuple(code.shape)}; expected that of token_encoding, {tuple(encoding.shape)}"
        )
    if index.shape != encoding.shape[:-1]:
        expected = f"token_encoding's but for the last, {tuple(encoding.shape[:-1])}"
        raise ValueError(f"token_index has the shape {tuple(index.shape)}; expected {expected}")
    if index.is_floating_point() or index.is_complex() or index.dtype is torch.bool:
        raise ValueError(f"token_index is of {index.dtype}; expected integers")
    return widened(encoding), widened(code), index


def perplexity(index: Tensor) -> Tensor:
    """exp(H) for the entropy H of the frequencies of the numbers in `index`, which has any shape."""
    _, counts = index.unique(return_counts=True)  # type: ignore[no-untyped-call]
    shares: Tensor = counts.double() / index.numel()
    return (-(shares * shares.log()).sum()).exp()
