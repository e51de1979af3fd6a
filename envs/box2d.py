"""LunarLander with two repairs of Box2D's Python bindings. All else imports it from here.

The bindings warn when they are imported, and crash the interpreter where Python makes errors of warnings (`-W error`).
They never free the shape of a fixture, which is 1.6 kB at every reset: see
https://github.com/pybox2d/pybox2d/issues/121.
"""

import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from Box2D import b2FixtureDef
    from gymnasium.envs.box2d.lunar_lander import LunarLander

__all__ = ["LunarLander", "free_shapes"]


def free_shapes() -> None:
    """In the whole process, free each shape together with the fixture definition that it was given to.

    The bindings take the ownership of the shape away from Python and then never free it. Python can keep the
    ownership, because Box2D copies the shape when the fixture is made, and needs the original only as long as the
    definition exists.
    """
    if getattr(b2FixtureDef.shape.fset, "__module__", None) == __name__:
        return  # the repair has been done already
    original = b2FixtureDef.shape

    def put(definition: Any, shape: Any) -> None:
        owned = shape is not None and shape.thisown
        original.fset(definition, shape)
        if owned:
            shape.thisown = True
            # The definition keeps every shape that it was ever given, because an earlier one may be put back.
            definition.__dict__.setdefault("shapes", []).append(shape)

    b2FixtureDef.shape = property(original.fget, put, doc=original.__doc__)
