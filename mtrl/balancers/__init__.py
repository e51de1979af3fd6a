"""Gradient balancers: one file per method, one registry for all.

Every method is a `Balancer`; `make_balancer("gradnorm", num_tasks=3, alpha=0.5)` makes one by name. To add one, write
its file and add its line to `_REGISTRY`, or call `register_balancer` from your own code. Names that start with
`torchjd:` are TorchJD's (`torchjd_names()` lists them) and need the optional extra `torchjd`.
"""

from __future__ import annotations

import inspect
from typing import Any

from mtrl.balancers.aim import AIM
from mtrl.balancers.base import Balance, Balancer, Deferred, RandomBalancer
from mtrl.balancers.equal import EqualWeights
from mtrl.balancers.gradnorm import GradNorm
from mtrl.balancers.gradnorm_pcgrad import GradNormPCGrad
from mtrl.balancers.pcgrad import PCGrad
from mtrl.balancers.random_weights import RandomLossWeighting
from mtrl.balancers.rgb import RGB
from mtrl.balancers.torchjd import PREFIX, TorchJD, torchjd_names

__all__ = [
    "AIM",
    "RGB",
    "Balance",
    "Balancer",
    "Deferred",
    "EqualWeights",
    "GradNorm",
    "GradNormPCGrad",
    "PCGrad",
    "RandomBalancer",
    "RandomLossWeighting",
    "TorchJD",
    "make_balancer",
    "names",
    "register_balancer",
    "torchjd_names",
]

_REGISTRY: dict[str, type[Balancer]] = {
    "equal": EqualWeights,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "rgb": RGB,
    "aim": AIM,
    "gradnorm_pcgrad": GradNormPCGrad,
    "random": RandomLossWeighting,
}


def names() -> tuple[str, ...]:
    """The names that `make_balancer` knows, besides those of TorchJD."""
    return tuple(_REGISTRY)


def register_balancer(name: str, balancer: type[Balancer]) -> None:
    """Make `balancer` available by name, in `make_balancer` and so in every agent; a known name is replaced."""
    _REGISTRY[name] = balancer


def make_balancer(name: str, num_tasks: int, **kwargs: Any) -> Balancer:
    """The balancer of that name, for `num_tasks` tasks; `kwargs` are its own arguments.

    Raises:
        ValueError: the name or an argument is unknown (the message lists those that exist), or a value is out of
            the range that the method states.
    """
    if name.startswith(PREFIX):
        return TorchJD(num_tasks, name, **kwargs)
    try:
        kind = _REGISTRY[name]
    except KeyError:
        known_names = ", ".join((*_REGISTRY, f"{PREFIX}<aggregator>"))
        raise ValueError(f"unknown balancer {name!r}; balancers are {known_names}") from None
    known = [argument for argument in inspect.signature(kind).parameters if argument != "num_tasks"]
    for argument in kwargs:
        if argument not in known:
            raise ValueError(f"balancer {name!r} has no argument {argument!r}; it has {', '.join(known)}")
    return kind(num_tasks, **kwargs)
