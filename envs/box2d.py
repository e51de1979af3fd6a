"""A repair of Box2D's Python bindings, which never free the shape of a fixture: 1.6 kB at every reset of LunarLander.

See https://github.com/pybox2d/pybox2d/issues/121.
"""

from typing import Any

from Box2D import b2FixtureDef

__all__ = ["free_shapes"]


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
