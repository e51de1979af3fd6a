"""Perceiver task: the reconstruction of the video by a tokenizer with a codebook, and the use of the codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mtrl.limits import check_choice, check_number
from mtrl.losses.outputs import OutputReader, Steps, stacked, widened

Reconstruction = Literal["pixels", "tokens"]


@dataclass(frozen=True)
class PerceiverLoss:
    """Vector quantisation of tokens (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937) and reconstruction.

    Terms, all scalars:

    * `vq_commitment_loss`: the mean over tokens and their E numbers of (z - sg(e))^2, where sg stops the gradient. It
      keeps tokens z near their codes e.
    * `vq_codebook_loss`: the mean of (sg(z) - e)^2, the same number with another gradient. It moves codes towards their
      tokens. If the codebook follows by moving averages, e has no gradient, and this term is a constant.
    * `perceiver_recon_loss`: the mean over frames, channels and pixels of (x - x')^2/sigma^2. With
      `reconstruction="tokens"` it is the cross-entropy of the predicted tokens, in nats per token.
    * `codebook_perplexity`: the exponential of the entropy of the frequencies of the codes in the batch, from 1 (one
      code is used) to the number of codes (all are used equally). It is a metric without a gradient.
    * `next_token_loss`, if the outputs hold `next_token_logits`: the cross-entropy of the next frame's tokens, in nats
      per token, a mean over all tokens.

    The losses are means and not sums, so that their weights do not depend on the sizes of frames and tokens.

    Args:
        observation_std: sigma, in the units of the observations, above 0. Default 1.0.
        reconstruction: what is to be found again: `"pixels"`, or the `"tokens"` by `token_logits`. Default `"pixels"`.
        label_smoothing: share of the probability, in [0, 1), that the target of `"tokens"` spreads over all codes.
            Default 0.0.

    Raises:
        ValueError: an argument is out of range, or the choice is unknown.
    """

    observation_std: float = 1.0
    reconstruction: Reconstruction = "pixels"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges and the choice."""
        check_number("observation_std", self.observation_std, above=0)
        check_number("label_smoothing", self.label_smoothing, least=0, below=1)
        check_choice("reconstruction", self.reconstruction, get_args(Reconstruction))

    def __call__(self, outputs: Mapping[str, Any], observations: Steps) -> dict[str, Tensor]:
        """The terms by name, each ().

        Args:
            outputs: see `ModelOutputs`.
            observations: (B, T, C, H, W).

        Raises:
            ValueError: an output is missing or has the wrong shape or type.
        """
        read = OutputReader(outputs, observations)
        encoding, code, index = tokens(outputs)
        if self.reconstruction == "tokens":
            loss = _cross_entropy("token_logits", outputs, index, self.label_smoothing)
        else:
            reconstruction = read("perceiver_reconstruction", "B T C H W")
            loss = ((reconstruction - read.observations) / self.observation_std).square().mean()
        terms = {
            "vq_commitment_loss": (encoding - code.detach()).square().mean(),
            "vq_codebook_loss": (encoding.detach() - code).square().mean(),
            "perceiver_recon_loss": loss,
            "codebook_perplexity": perplexity(index).to(encoding.dtype),
        }
        if "next_token_logits" in read:
            terms["next_token_loss"] = _cross_entropy("next_token_logits", outputs, index[:, 1:])
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


def _cross_entropy(name: str, outputs: Mapping[str, Any], index: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The cross-entropy () of the tokens `index` (...) by their logits (..., V), in nats per token.

    Raises:
        ValueError: the logits are missing, do not fit `index`, or are fewer than the codes that it names.
    """
    if outputs.get(name) is None:
        raise ValueError(f"the outputs have no {name!r}; the cross-entropy of tokens needs a tensor (B, ..., V)")
    logits = widened(stacked(name, outputs[name]))
    if (
        logits.shape[:-1] != index.shape
        or not index.numel()
        or int(index.max()) >= logits.shape[-1]
        or int(index.min()) < 0
    ):
        names = f"{int(index.min())} to {int(index.max())}" if index.numel() else "none"
        raise ValueError(
            f"{name} have the shape {tuple(logits.shape)}; expected {tuple(index.shape)}, as their tokens have, and "
            f"one logit for each code, of which token_index names {names}"
        )
    return cross_entropy(logits.flatten(0, -2), index.flatten().long(), label_smoothing=label_smoothing)


def perplexity(index: Tensor) -> Tensor:
    """exp(H) for the entropy H of the frequencies of the numbers in `index`, which has any shape."""
    _, counts = index.unique(return_counts=True)  # type: ignore[no-untyped-call]
    shares: Tensor = counts.double() / index.numel()
    return (-(shares * shares.log()).sum()).exp()
