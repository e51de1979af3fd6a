"""Box2D's Python bindings, mended: they never free the shape of a fixture, 1.6 kB at every reset of LunarLander.

https://github.com/pybox2d/pybox2d/issues/121
"""

from typing import Any

from Box2D import b2FixtureDef

__all__ = ["free_shapes"]


def free_shapes() -> None:
    """Let shapes that are given to a fixture's definition be freed with it, from now on and in the whole process.

    A definition takes a shape's ownership away from Python and does nothing with it. Python can keep it: Box2D copies
    the shape when the fixture is made, and needs the original only as long as there is the definition.
    """
    if getattr(b2FixtureDef.shape.fset, "__module__", None) == __name__:
        return
    taking = b2FixtureDef.shape

    def put(definition: Any, shape: Any) -> None:
        owned = shape is not None and shape.thisown
        taking.fset(definition, shape)
        if owned:
            shape.thisown = True
            definition.__dict__.setdefault("shapes", []).append(shape)  # not the last alone: one may be put back

    b2FixtureDef.shape = property(taking.fget, put, doc=taking.__doc__)
