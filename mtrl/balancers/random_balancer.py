"""The base of the methods that make random choices."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtrl.balancers.base import Balancer, Scale
from mtrl.limits import check_number
from mtrl.states import PCG64, check_form


class RandomBalancer(Balancer):
    """A balancer that makes random choices, from a generator of its own.

    `state_dict` holds the state of the generator, and `reset` restarts it. Nothing else draws from it, so that a run is
    reproducible, and every process of a data-parallel run makes the same choices.

    Args:
        num_tasks: see `Balancer`.
        seed: the seed of the generator, at least 0. Default 0.
        scale: see `Balancer`.

    Attributes:
        generator: the generator, on the CPU.

    Raises:
        ValueError: `seed` is negative, or as `Balancer`.
    """

    def __init__(self, num_tasks: int | None = None, *, seed: int = 0, scale: Scale = "sum") -> None:
        super().__init__(num_tasks, scale=scale)
        self.seed: int = check_number("seed", seed, least=0, whole=True)
        self.generator = np.random.Generator(np.random.PCG64(self.seed))

    def reset(self) -> None:
        """Start the random choices again from the seed."""
        self.generator = np.random.Generator(np.random.PCG64(self.seed))

    def get_extra_state(self) -> dict[str, Any]:
        """The state of the generator."""
        return dict(self.generator.bit_generator.state)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put the generator into a state that `get_extra_state` returned.

        Raises:
            ValueError: it is no such state.
        """
        check_form(f"{type(self).__name__}'s generator", state, PCG64)
        self.generator.bit_generator.state = state
