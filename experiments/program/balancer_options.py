"""The options of a balancer. Every program that lets the user choose a balancer reads its options here.

Options come as a mapping, for example from a YAML file, or as words `name=value` from a command line. The names and the
types are those of the balancer's own arguments, so that `warmup_steps=1e3` is the integer 1000.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import mtrl  # its names are imported when they are first used, so that `--help` does not load PyTorch
from experiments.program.flags import UsageError

if TYPE_CHECKING:
    from mtrl import Balancer

LIBRARY = "torchjd:"  # TorchJD's aggregators check their arguments themselves

NAME = r"[^\W_][\w .:-]{0,39}"  # other characters have a meaning in tables and figures

__all__ = ["Variant", "balancer_from", "options_from_words", "variant_from_word"]


@dataclass(frozen=True)
class Variant:
    """A balancer with options, as a comparison of balancers has it.

    Attributes:
        label: what tables and figures call it.
        balancer: the balancer's name, as `mtrl.make_balancer` knows it.
        options: the balancer's arguments by name.
    """

    label: str
    balancer: str
    options: dict[str, Any]


def variant_from_word(word: str) -> Variant:
    """Split a word `label=balancer,option=value,...` of a command line. Only the balancer must be there.

    Without a label, the whole word is the label. A comma inside brackets belongs to a value, as in
    `static,weights=[1,0.5]`.

    Raises:
        UsageError: the label has characters that tables and figures cannot show, or an option has no value.
    """
    first, *words = re.split(r",(?![^\[(]*[\])])", word)
    label, equals, balancer = first.rpartition("=")
    if equals and not re.fullmatch(NAME, label):
        form = "it must begin with a letter or digit, go on with these or '_', '-', '.', ':', ' ', and not be long"
        raise UsageError(f"label {label[:60]!r} of balancer {balancer[:60]!r}: {form}")
    try:
        return Variant(label if equals else word, balancer, options_from_words(words))
    except ValueError as error:
        raise UsageError(str(error)) from None


def balancer_from(name: str, num_tasks: int, options: Mapping[str, Any] | Sequence[str] = ()) -> Balancer:
    """Make the balancer of this name.

    Args:
        name: a name that `mtrl.make_balancer` knows.
        num_tasks: the number of tasks T.
        options: the balancer's arguments by name, or words `name=value`. Default: the balancer's own defaults.

    Raises:
        UsageError: the name, an argument or a value is wrong. The message is one line; it has the nearest known name of
            an argument that is unknown.
    """
    try:
        given = dict(options) if isinstance(options, Mapping) else options_from_words(options)
        if given and not name.startswith(LIBRARY):
            given = _typed_options(name, type(mtrl.make_balancer(name, num_tasks)), given)
        return mtrl.make_balancer(name, num_tasks, **given)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def options_from_words(words: Sequence[str], kind: str = "balancer option") -> dict[str, Any]:
    """Split words `name=value`. A value that is a Python literal stands for itself; any other value is a string.

    Args:
        words: the words, such as `alpha=0.5`.
        kind: the name of such a word in messages.

    Raises:
        ValueError: a word does not have this form.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"{kind} {word!r} is not of the form name=value")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # not a literal
            options[name] = value
    return options


def _typed_options(name: str, balancer: type[Balancer], options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options against the arguments of `balancer` and convert the values to the arguments' types."""
    known = [argument for argument in inspect.signature(balancer).parameters if argument != "num_tasks"]
    hints = get_type_hints(balancer.__init__)
    typed = {}
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"balancer {name!r} has no argument {option!r}; {hint}")
        typed[option] = _typed(option, value, hints.get(option, Any))
    return typed


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Convert `value` to the type `hint` of an argument. The balancer itself checks numbers and their ranges.

    Raises:
        ValueError: the argument is a pair of values or a truth value, and `value` is not.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        (hint, *others) = (part for part in parts if part is not NoneType)
        return value if others else _typed(name, value, hint)
    if origin is tuple and Ellipsis not in parts:
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise ValueError(f"{name} is {value!r}; it must be {len(parts)} values")
        return tuple(_typed(name, part, kind) for part, kind in zip(value, parts, strict=True))
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is bool:
        truth = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(truth, bool):
            raise ValueError(f"{name} is {value!r}; it must be true or false")
        return truth
    return value
