"""Subnormal numbers, which slow a CPU down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def subnormal_numbers_flushed() -> Iterator[None]:
    """Inside this context, subnormal numbers count as 0.

    The optimizer's memory of weights that no longer change fades into subnormal numbers, on which a CPU is tens of
    times slower. Flushing them to zero makes no difference to the result.
    """
    smallest = float(np.nextafter(0.0, 1.0))
    before = smallest * np.ones(1)[0] == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(bool(before))
