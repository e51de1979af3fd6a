"""Gradient balancers: one file per method, one registry for all.

Every method is a `Balancer`, and `make_balancer("gradnorm", num_tasks=3, alpha=0.5)` makes one by its name. To add a
method, write its file and add a line to `_REGISTRY`, or call `register_balancer` from your own code. A name that starts
with `torchjd:` is that of a method of TorchJD (`torchjd_names()` lists them) and needs the optional extra `torchjd`.
"""

from __future__ import annotations

import inspect
from typing import Any

from mtrl.balancers.aim import AIM
from mtrl.balancers.base import Balance, Balancer, Deferred
from mtrl.balancers.equal import EqualWeights
from mtrl.balancers.gradnorm import GradNorm
from mtrl.balancers.gradnorm_pcgrad import GradNormPCGrad
from mtrl.balancers.memory import MemoryBalancer
from mtrl.balancers.normalised import NormalisedGradients
from mtrl.balancers.pcgrad import PCGrad
from mtrl.balancers.random_balancer import RandomBalancer
from mtrl.balancers.random_weights import RandomLossWeighting
from mtrl.balancers.rgb import RGB
from mtrl.balancers.static import StaticWeights
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
    "MemoryBalancer",
    "NormalisedGradients",
    "PCGrad",
    "RandomBalancer",
    "RandomLossWeighting",
    "StaticWeights",
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
    "static": StaticWeights,
    "normalised": NormalisedGradients,
    "memory": MemoryBalancer,
    "random": RandomLossWeighting,
}


def names() -> tuple[str, ...]:
    """The names that `make_balancer` knows, without those of TorchJD."""
    return tuple(_REGISTRY)


def register_balancer(name: str, balancer: type[Balancer]) -> None:
    """Make the class `balancer` known to `make_balancer`, and so to every agent. A name that is known is replaced."""
    _REGISTRY[name] = balancer


def make_balancer(name: str, num_tasks: int, **kwargs: Any) -> Balancer:
    """Make a balancer.

    Args:
        name: the name of the method; see `names` and `torchjd_names`.
        num_tasks: T.
        kwargs: the method's own arguments.

    Raises:
        ValueError: the name or an argument is unknown (the message lists the known ones), or a value is out of range.
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
